"""Connecting to a Ray cluster. Ray is imported here when it is needed, and nowhere at the start of a command."""

import contextlib
import importlib.util
import logging
import os
import re
import socket
from typing import Any

import psutil

from atari_dqn.config.setting import ConfigError

ANSWER_SECONDS = 5.0
"""Seconds to wait for a host to accept a connection; Ray itself would wait for 80."""
SETTINGS = b"\0\0\0\4\0\0\0\0\0"
"""The frame with which HTTP/2, and so every server of Ray's, begins; its fourth byte is the kind"""
GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + SETTINGS
"""What a client of HTTP/2 begins with. Ray itself would wait for ever for anything else that listens."""


def connect(address: str, *, object_store_memory: int | None = None, **given: Any) -> None:
    """Connect this process to a Ray cluster, or start one on this machine that ends with this process.

    Args:
        address: `HOST:PORT` of the cluster's head, `auto` for the cluster that this machine belongs to, or `local` to
            start one here.
        object_store_memory: Bytes of shared memory of a cluster that is started here.
        given: Further arguments of `ray.init`.

    Raises:
        ConfigError: Ray is not installed, there is no cluster at `address`, or it runs other versions of Ray or Python.
    """
    check_address(address)
    if address != "local":
        _check_node(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing calls home
    import ray

    if address == "local":
        given = {"object_store_memory": object_store_memory, "include_dashboard": False} | given
    try:
        ray.init(address=address, logging_level=logging.ERROR, **given)
    except ray.exceptions.AuthenticationError as error:
        raise _wrong_token(address, str(error).partition(". ")[0]) from None
    except (ConnectionError, ValueError) as error:
        if "InvalidAuthToken" in str(error.__cause__):  # `ray start` asks for one wherever its user has one
            raise _wrong_token(address, "the cluster asks for its token, which is missing here or another") from None
        raise _no_cluster(address, str(error).partition(". ")[0]) from None
    except RuntimeError as error:  # "Version mismatch: The cluster was started with: Ray: 2.50.0, Python: 3.12.1 ..."
        if "mismatch" not in str(error):
            raise
        raise ConfigError(f"--cluster {address}: {' '.join(str(error).split())}") from None
    except Exception as error:
        if type(error) is not Exception:  # Ray says so when "The current node timed out during startup"
            raise
        raise ConfigError(f"--cluster {address}: {' '.join(str(error).split())}; is the machine busy?") from None


def check_address(address: str) -> None:
    """Raise `ConfigError` unless Ray is installed and something listens at `address`, as `connect` takes it."""
    if not importlib.util.find_spec("ray"):
        raise ConfigError('--cluster needs Ray; install it with: pip install "atari_dqn[cluster]"')
    if address in ("auto", "local"):
        return
    found = re.fullmatch(r"(?P<host>[^\s/]+):(?P<port>\d{1,5})", address)
    if found is None or int(found["port"]) > 65535:
        raise ConfigError(f"--cluster {address} is not an address; give HOST:PORT of the head, auto or local")
    if fault := no_answer(found["host"].strip("[]"), int(found["port"])):
        raise _no_cluster(address, fault)


def _check_node(address: str) -> None:
    """Raise `ConfigError` unless this machine runs a node of the cluster.

    Ray itself would abort the process, or for `auto` wait for a cluster that ran here once.
    """
    heads = [
        word.partition("=")[2]
        for process in psutil.process_iter(["cmdline"])
        for word in process.info["cmdline"] or ()
        if word.startswith("--gcs-address=")
    ]
    if address == "auto":
        if not heads:
            raise _no_cluster(address, "no node of Ray's runs here")
        return
    port = address.rpartition(":")[2]  # ports alone are compared, as a head has several addresses
    if not any(head.endswith(f":{port}") for head in heads):
        raise ConfigError(
            f"--cluster {address}: this machine is no node of that cluster; run ray start --address {address} first"
        )


def no_answer(host: str, port: int) -> str:
    """Why no server of Ray's answers at an address; empty if one does. Waits `ANSWER_SECONDS` at most for each step.

    The kernel accepts connections for a server that hangs, too, so it must answer.
    """
    try:
        with contextlib.closing(socket.create_connection((host, port), ANSWER_SECONDS)) as connection:
            if os.environ.get("RAY_USE_TLS", "0") != "0":
                return ""
            connection.sendall(GREETING)
            return "" if connection.recv(len(SETTINGS))[3:4] == SETTINGS[3:4] else "what listens there is not Ray"
    except OSError as error:
        return error.strerror or str(error)


def _wrong_token(address: str, reason: str) -> ConfigError:
    how = "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH to the file that its head was started with"
    return ConfigError(f"--cluster {address}: {reason}; {how} (by default ~/.ray/auth_token)")


def _no_cluster(address: str, reason: str) -> ConfigError:
    what = "no Ray cluster on this machine" if address == "auto" else f"no Ray cluster at {address}"
    how = "start its head as docs/cluster.md says, or use --cluster local"
    return ConfigError(f"--cluster: {what} ({reason}); {how}")
