"""A trained network for other programs: `Policy`, exported files, model card."""
