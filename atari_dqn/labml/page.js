// Added to labml-app's page, before its own script.

// Stands in for the reporters (Sentry, Mixpanel): accepts any call, property or `new`, and does nothing.
{
    const stub = new Proxy(function () {}, {
        get: (_, name) => name === "then" ? undefined : name === Symbol.toPrimitive ? () => "" : stub,
        apply: () => stub,
        construct: () => stub,
    })
    window.Sentry = window.mixpanel = stub
}

// Below each live hyperparameter: the values it takes, and what became of its last edit.
{
    let run = "", bounds = {}, answers = {}
    const typed = new Set()  // names of fields that are not saved
    const sent = {}  // the answer that was known when an edit was saved, by name

    const get = async path => {
        const reply = await fetch(`/api/v1/${path}`)
        return reply.ok ? reply.json() : {}
    }
    const nameIn = card => card.querySelector(".title").textContent
    const button = text => [...document.querySelectorAll("nav.nav-link")].find(each => each.textContent === text)

    async function update() {
        const [, uuid] = location.pathname.match(/^\/run\/(\w+)\/hyper_params/) || []
        if (!uuid) return
        if (uuid !== run) {
            const {configs = []} = await get(`run/${uuid}`)
            bounds = Object.fromEntries(configs.map(each => [each.key, each.computed?.bounds]))
            answers = await get(`answers/${uuid}`)
            run = configs.length ? uuid : ""
        }
        const before = JSON.stringify(answers)
        answers = await get(`answers/${uuid}`)
        if (JSON.stringify(answers) !== before && !typed.size) document.querySelector(".btn-refresh")?.click()
        for (const card of document.querySelectorAll(".sparkline-content")) {
            const name = nameIn(card), waits = name in sent && sent[name] === answers[name]
            let note = card.querySelector(".answer")
            if (!note) {
                note = document.createElement("div")
                note.className = "answer text-secondary small"
                card.append(note)
            }
            const answer = waits ? "saved; the run has not answered yet" : answers[name]
            const text = [bounds[name] && `values: ${bounds[name]}`, answer].filter(Boolean).join("\n")
            note.classList.toggle("refused", !waits && /: refused: /.test(answers[name]))
            if (note.textContent !== text) note.textContent = text
        }
    }

    document.addEventListener("input", event => {
        const card = event.target.closest(".sparkline-content")
        if (card) typed.add(nameIn(card))
    })
    document.addEventListener("click", event => {
        const pressed = event.target.closest("nav.nav-link")
        if (pressed && pressed === button("save")) for (const name of typed) sent[name] = answers[name]
        if (pressed && (pressed === button("save") || pressed === button("reset"))) typed.clear()
    }, true)
    const repeat = () => update().catch(() => {}).finally(() => setTimeout(repeat, 500))
    repeat()
}
