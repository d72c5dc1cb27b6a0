// The coding page: one text at a time, a key per label, everything sent to the server as it is typed.
// Texts and labels enter the page as text nodes only, never as HTML. Offsets of spans count code points, as Python does.

const token = location.hash.slice(1)
const at = id => document.getElementById(id)
const PENDING = "consilience-pending-" + token
const NONE_KEY = "-", UNCLEAR_KEY = "x"

let book = null // the codebook
let coder = "" // who codes here
let role = "coder" // or "adjudicator"
let trail = [] // identifiers in the order gone through; the text shown is trail[here]
let here = -1
let shown = null // the text shown: {item, text, coding, ...}
let answer = null // {status, value, note} of the text shown, as it is on the page
let burst = 0 // key presses of one burst change one coding; a new burst makes a new one
let cases = [] // what there is to adjudicate
let skipped = new Set() // texts passed over in this session: they come last
let words = [], cursor = 0, anchor = 0 // of a text whose passages are marked

// -- small helpers ----------------------------------------------------------------------------------------------------

function make(tag, properties = {}, ...children) {
  const made = document.createElement(tag)
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("aria-") || name === "for" || name === "role") made.setAttribute(name, value)
    else made[name] = value
  }
  made.append(...children.filter(child => child !== null && child !== undefined))
  return made
}

const show = (id, visible = true) => { at(id).hidden = !visible }
const keyCap = key => key ? make("kbd", {"aria-hidden": "true"}, key.toUpperCase()) : make("span")
const say = text => { at("spoken").textContent = ""; requestAnimationFrame(() => { at("spoken").textContent = text }) }
const plural = (count, word) => `${count} ${word}${count === 1 ? "" : "s"}`
const remembered = (name, value) => {
  if (value !== undefined) localStorage.setItem("consilience-" + name, value)
  return localStorage.getItem("consilience-" + name)
}

async function ask(path, body) {
  const options = {headers: {authorization: "Bearer " + token}}
  if (body !== undefined) {
    options.method = "POST"
    options.headers["content-type"] = "application/json"
    options.body = JSON.stringify(body)
  }
  const reply = await fetch(path, options)
  const found = await reply.json()
  if (!reply.ok) throw Object.assign(new Error(found.error), {refused: true})
  return found
}

function trouble(text) {
  at("trouble").textContent = text
  show("trouble", Boolean(text))
}

// -- sending: in order, kept in the browser until the server has it ----------------------------------------------------

let pending = JSON.parse(sessionStorage.getItem(PENDING) ?? "[]") // of this tab: another may be another coder's
let sent = null // the last coding that the server took: {key, id}
let sending = null

function keep() {
  if (pending.length) sessionStorage.setItem(PENDING, JSON.stringify(pending))
  else sessionStorage.removeItem(PENDING)
}

function send(coding) {
  const last = pending.at(-1)
  if (last && last.key === coding.key && pending.length > (sending ? 1 : 0)) pending[pending.length - 1] = coding
  else pending.push(coding)
  keep()
  at("saved").textContent = "saving…"
  return flush()
}

function flush() {
  sending ??= drain().finally(() => { sending = null })
  return sending
}

async function drain() {
  while (pending.length) {
    const {key, ...body} = pending[0]
    if (sent && sent.key === key) body.continues = sent.id
    try {
      const found = await ask("api/code", body)
      sent = {key, id: found.id}
      trouble("")
      if (body.coder === coder && body.role === role) count(found)
    } catch (error) {
      if (!error.refused) {
        trouble("The server does not answer. What you coded is kept here and sent as soon as it does.")
        await new Promise(resolve => setTimeout(resolve, 700))
        continue
      }
      trouble("Not saved: " + error.message)
    }
    pending.shift()
    keep()
  }
  at("saved").textContent = "saved"
}

// -- the start: who codes ----------------------------------------------------------------------------------------------

async function door() {
  await flush()
  const found = await ask("api/start")
  book = found.codebook
  coder = ""
  sessionStorage.removeItem("coder")
  document.title = `Coding: ${book.variable}`
  at("variable").textContent = book.variable
  at("coders").replaceChildren(...found.coders.map(one => {
    const state = one.left ? `${one.done} coded, ${one.left} to go` : `${one.done} coded, none left`
    const button = make("button", {type: "button", onclick: () => begin(one.name)}, make("span", {}, one.name), make("small", {}, state))
    return make("li", {}, button)
  }))
  show("adjudicate-door", found.to_adjudicate + found.adjudicated > 0)
  at("adjudicate-open").textContent = `Adjudicate: ${plural(found.to_adjudicate, "text")} on which coders disagree or were unclear`
  at("codebook-door").replaceChildren(codebookShown())
  view("door")
  show("progress", false)
  show("leave", false)
  ;(at("coders").querySelector("button") ?? at("name")).focus()
}

async function begin(name) {
  coder = name
  role = "coder"
  sessionStorage.setItem("coder", name)
  sessionStorage.setItem("role", role)
  at("leave").textContent = name + ": change"
  show("leave")
  skipped = new Set()
  trail = (await ask("api/coded?coder=" + encodeURIComponent(coder))).items
  here = trail.length - 1
  await forward()
}

async function adjudicate() {
  const name = coder || at("name").value.trim()
  if (!name) {
    trouble("Who adjudicates? Write your name first.")
    return at("name").focus()
  }
  coder = (await ask("api/coders", {name})).name
  role = "adjudicator"
  sessionStorage.setItem("coder", coder)
  sessionStorage.setItem("role", role)
  at("leave").textContent = coder + ": leave"
  show("leave")
  cases = (await ask("api/adjudicate?coder=" + encodeURIComponent(coder))).items
  trail = cases.map(one => one.item)
  here = cases.findIndex(one => !one.coding && !one.decisions.length)
  if (here < 0) return finish()
  await open(trail[here])
}

function view(name) {
  for (const section of ["door", "coding", "done"]) show(section, section === name)
  show("own-open", name !== "door" && role === "coder")
}

function count({done, left}) {
  if (role === "adjudicator") {
    done = cases.filter(one => one.coding || one.decisions.length).length
    left = cases.length - done
  }
  show("progress")
  at("bar").max = Math.max(done + left, 1)
  at("bar").value = done
  at("count").textContent = `${done} of ${done + left}`
}

// -- going from text to text -------------------------------------------------------------------------------------------

const coded = () => answer !== null && answer.status !== "open"

async function forward() {
  if (here >= 0 && shown && !coded()) skipped.add(shown.item)
  if (here < trail.length - 1) return open(trail[++here])
  await flush()
  if (role === "adjudicator") return finish()
  const found = await ask(`api/next?coder=${encodeURIComponent(coder)}&skipping=${encodeURIComponent(JSON.stringify([...skipped]))}`)
  count(found)
  if (!found.item || skipped.has(found.item)) return finish()
  trail = trail.filter(item => item !== found.item)
  trail.push(found.item)
  here = trail.length - 1
  showText(found)
}

async function back() {
  if (here <= 0) return say("This is the first text.")
  await open(trail[--here])
}

async function open(item) {
  await flush()
  if (role === "adjudicator") {
    const one = cases.find(one => one.item === item)
    count({})
    return showText({...one, place: trail.indexOf(item) + 1})
  }
  const found = await ask(`api/text?coder=${encodeURIComponent(coder)}&item=${encodeURIComponent(item)}`)
  count(found)
  showText(found)
}

async function undo() {
  await flush()
  const found = await ask("api/undo", {coder, role})
  sent = null
  if (!found.item) return say("There is nothing to undo.")
  if (role === "adjudicator") {
    cases = (await ask("api/adjudicate?coder=" + encodeURIComponent(coder))).items
    trail = cases.map(one => one.item)
  }
  if (!trail.includes(found.item)) trail.push(found.item)
  here = trail.indexOf(found.item)
  await open(found.item)
  say(`Undone. ${label()}`)
}

async function finish() {
  const {left} = role === "coder" ? await ask(`api/next?coder=${encodeURIComponent(coder)}&skipping=[]`) : {left: cases.filter(one => !one.coding && !one.decisions.length).length}
  view("done")
  at("done-title").textContent = left ? `${plural(left, "text")} still to code` : "Everything is coded"
  at("done-text").textContent = left
    ? "You passed over some texts. Code them when you are ready, or leave them: they count as not coded."
    : "Thank you. Everything is saved; you may close this page."
  at("done-back").textContent = left ? "Go on with them" : "Back to your codings"
  at("done-back").onclick = () => {
    if (left) skipped = new Set()
    if (left && role === "coder") { shown = null; here = trail.length - 1; return forward() }
    const open_ = role === "adjudicator" ? cases.findIndex(one => !one.coding && !one.decisions.length) : -1
    here = open_ >= 0 ? open_ : Math.max(trail.length - 1, 0)
    return open(trail[here])
  }
  at("done-title").focus()
}

// -- showing a text ----------------------------------------------------------------------------------------------------

function showText(found) {
  shown = found
  burst += 1
  const own = found.coding
  answer = own ? {status: own.status, value: own.value, note: own.note} : {status: "open", value: null, note: ""}
  view("coding")
  at("place").textContent = `${book.unit[0].toUpperCase()}${book.unit.slice(1)} ${found.place}`
  at("text").setAttribute("aria-label", `${book.unit} ${found.place}`)
  words = book.level === "span" ? wordsOf(found.text) : []
  cursor = anchor = 0
  drawText()
  drawSaid()
  drawChoices()
  at("note").value = answer.note
  at("text").scrollTop = 0
  scrollTo(0, 0)
  const field = at("choices").querySelector(".answer")
  ;(field ?? at("text")).focus({preventScroll: true})
  say(`${book.unit} ${found.place}. ${label()}`)
}

function label() {
  if (answer.status === "unclear") return "Unclear."
  if (answer.status === "open") return "Not coded yet."
  if (book.level === "span") return plural(answer.value.length, "passage") + " marked."
  const value = Array.isArray(answer.value) ? answer.value.join(", ") || "none of the labels" : answer.value
  return `Coded ${value}.`
}

function drawSaid() {
  const rows = [...(shown.codings ?? []).map(one => ["coder", one]), ...(shown.decisions ?? []).map(one => ["adjudicator", one])]
  show("said", rows.length > 0)
  if (!rows.length) return at("said").replaceChildren()
  const head = make("tr", {}, ...["Who", "Label", "Note"].map(name => make("th", {scope: "col"}, name)))
  const body = rows.map(([kind, one]) => make("tr", {},
    make("th", {scope: "row"}, one.coder + (kind === "adjudicator" ? " (adjudicator)" : "")), make("td", {}, inWords(one)), make("td", {}, one.note)))
  at("said").replaceChildren(make("table", {"aria-label": "What was coded"}, make("thead", {}, head), make("tbody", {}, ...body)))
}

function inWords({status, value}) {
  if (status !== "coded") return "unclear"
  if (book.level === "span") return value.map(([start, end, name]) => `“${cut(shown.text, start, end)}” ${name}`).join("; ") || "no passage"
  return Array.isArray(value) ? value.join(", ") || "none of these" : value
}

function drawChoices() {
  at("question").textContent = book.question
  const parts = {
    nominal: radios, ordinal: radios, "multi-label": boxes, interval: number, span: passages, "free text": sentences,
  }[book.level]()
  parts.push(unclearChoice())
  if (book.unclear) parts.push(make("p", {className: "rule"}, "When it is unclear: " + book.unclear))
  at("choices").replaceChildren(...parts)
}

function choice(type, name, value, key, definition, checked, chosen) {
  const input = make("input", {type, name, value, checked, onchange: chosen})
  if (key) input.setAttribute("aria-keyshortcuts", key)
  return make("label", {className: "choice"}, input, keyCap(key), make("b", {}, value), definition ? make("span", {className: "definition"}, definition) : null)
}

function examplesOf(one) {
  if (!one.examples.length && !one.counter_examples.length) return null
  return make("details", {className: "examples", open: remembered("examples") === "open"}, make("summary", {}, `Examples of ${one.name}`), exampleList(one))
}

function exampleList(one) {
  const because = why => why ? `: ${why}` : ""
  return make("ul", {},
    ...one.examples.map(example => make("li", {}, make("q", {}, example.text), example.why ? ` (${example.why})` : "")),
    ...one.counter_examples.map(example => make("li", {}, "Not: ", make("q", {}, example.text), ` (${example.label ? "that is " + example.label : "it is not"}${because(example.why)})`)))
}

function radios() {
  return book.labels.flatMap(one => [
    choice("radio", "label", one.name, one.key, one.definition, answer.status === "coded" && answer.value === one.name, () => code("coded", one.name)),
    examplesOf(one),
  ]).filter(Boolean)
}

function boxes() {
  const chosen = answer.status === "coded" ? answer.value : []
  const none = answer.status === "coded" && !chosen.length
  return [...book.labels.flatMap(one => [
    choice("checkbox", "label", one.name, one.key, one.definition, chosen.includes(one.name), () => toggle(one.name)),
    examplesOf(one),
  ]), choice("checkbox", "none", "none of these", NONE_KEY, "", none, () => none ? code("open", null) : code("coded", []))].filter(Boolean)
}

function toggle(name) {
  const before = answer.status === "coded" ? answer.value : []
  const after = book.labels.map(one => one.name).filter(one => (one === name) !== before.includes(one))
  return after.length ? code("coded", after) : code("open", null)
}

function number() {
  const [low, high] = book.range
  const fault = make("span", {id: "fault", role: "alert"})
  const input = make("input", {
    id: "number", className: "answer", "aria-describedby": "fault", inputMode: "decimal", value: answer.status === "coded" ? answer.value : "",
    oninput: () => {
      const given = input.value.trim().replace(",", ".")
      const good = given !== "" && !isNaN(given) && Number(given) >= low && Number(given) <= high
      input.setAttribute("aria-invalid", String(given !== "" && !good))
      fault.textContent = given === "" || good ? "" : `Not saved: expected ${low} to ${high}.`
      if (good) typed("coded", String(Number(given)))
      else if (answer.status !== "open") typed("open", null)
    },
  })
  return [make("div", {className: "row"}, make("label", {for: "number"}, `A number from ${low} to ${high}`), input, fault)]
}

function sentences() {
  const area = make("textarea", {id: "sentences", className: "answer", rows: 4, maxLength: 20000, value: answer.status === "coded" ? answer.value : "",
    oninput: () => area.value.trim() ? typed("coded", area.value) : typed("open", null)})
  area.setAttribute("aria-label", book.question)
  return [area]
}

function unclearChoice() {
  const on = answer.status === "unclear"
  return choice("checkbox", "unclear", "unclear", UNCLEAR_KEY, "cannot be decided with the codebook", on, () => on ? code("open", null) : code("unclear", null))
}

// -- passages ----------------------------------------------------------------------------------------------------------

const points = text => Array.from(text)
const cut = (text, start, end) => points(text).slice(start, end).join("")

function wordsOf(text) {
  const found = []
  let offset = 0
  for (const part of text.split(/(\s+)/u)) {
    const length = points(part).length
    if (part.trim()) found.push([offset, offset + length])
    offset += length
  }
  return found
}

function passages() {
  const spans = answer.status === "coded" ? answer.value : []
  const list = make("ul", {className: "spans", "aria-label": "Marked passages"}, ...spans.map((span, place) => make("li", {},
    make("mark", {}, cut(shown.text, span[0], span[1])), span[2] ?? "",
    make("button", {type: "button", onclick: () => code("coded", spans.filter((_, other) => other !== place)), "aria-label": `Remove “${cut(shown.text, span[0], span[1])}”`}, "×"))))
  const labels = book.labels.length ? book.labels : [{name: book.variable, key: "1", definition: "", examples: [], counter_examples: []}]
  const hint = make("p", {className: "rule"}, "Select words with the mouse, or in the text with ← → and Shift, then choose a label.")
  const buttons = labels.flatMap(one => [
    make("div", {className: "row"}, make("button", {type: "button", className: "mark", onmousedown: event => event.preventDefault(), onclick: () => markSelection(one.name)}, keyCap(one.key), " " + one.name), make("span", {className: "definition rule"}, one.definition)),
    examplesOf(one),
  ]).filter(Boolean)
  const none = answer.status === "coded" && !spans.length
  return [list, hint, ...buttons, choice("checkbox", "none", "no passage", NONE_KEY, "", none, () => none ? code("open", null) : code("coded", []))]
}

function selection() {
  const chosen = getSelection()
  if (chosen && !chosen.isCollapsed && at("text").contains(chosen.anchorNode) && at("text").contains(chosen.focusNode)) {
    const range = chosen.getRangeAt(0)
    const before = document.createRange()
    before.setStart(at("text"), 0)
    before.setEnd(range.startContainer, range.startOffset)
    const start = points(before.toString()).length
    return [start, start + points(range.toString()).length]
  }
  if (!words.length) return null
  return [words[Math.min(cursor, anchor)][0], words[Math.max(cursor, anchor)][1]]
}

function markSelection(name) {
  const found = selection()
  if (!found) return
  const before = answer.status === "coded" ? answer.value : []
  const span = [...found, name]
  if (before.some(other => other.join("\0") === span.join("\0"))) return
  getSelection()?.removeAllRanges()
  anchor = cursor
  code("coded", [...before, span].sort((one, other) => one[0] - other[0] || one[1] - other[1]))
  say(`Marked “${cut(shown.text, span[0], span[1])}” as ${name}.`)
}

function moveCursor(step, extend) {
  cursor = Math.min(Math.max(cursor + step, 0), words.length - 1)
  if (!extend) anchor = cursor
  drawText()
  const [start, end] = selection()
  say(cut(shown.text, start, end))
}

function drawText() {
  const box = at("text")
  box.classList.toggle("words", words.length > 0)
  if (book.level !== "span") return box.replaceChildren(shown.text)
  const spans = answer.status === "coded" ? answer.value : []
  const [from, to] = words.length ? [words[Math.min(cursor, anchor)][0], words[Math.max(cursor, anchor)][1]] : [0, 0]
  const edges = [...new Set([0, points(shown.text).length, from, to, ...spans.flatMap(([start, end]) => [start, end])])].sort((a, b) => a - b)
  box.replaceChildren(...edges.slice(1).map((end, place) => {
    const start = edges[place]
    const names = spans.filter(span => span[0] <= start && end <= span[1]).map(span => span[2])
    const part = names.length ? make("mark", {title: names.join(", ")}, cut(shown.text, start, end)) : make("span", {}, cut(shown.text, start, end))
    if (start >= from && end <= to && document.activeElement === box) part.classList.add("selected", "cursor")
    return part
  }))
}

// -- coding ------------------------------------------------------------------------------------------------------------

function code(status, value) {
  burst += 1
  put(status, value)
  drawChoicesKeepingFocus()
  if (book.level === "span") drawText()
  else say(label())
  if (remembered("go-on") === "yes" && coded() && ["nominal", "ordinal"].includes(book.level)) act(forward)
}

function typed(status, value) {
  put(status, value)
  for (const box of at("choices").querySelectorAll("input[name=unclear]")) box.checked = false
}

function put(status, value) {
  answer = {...answer, status, value}
  if (role === "adjudicator") cases.find(one => one.item === shown.item).coding = status === "open" ? null : {...answer}
  const key = `${coder}/${role}/${shown.item}/${burst}`
  send({key, coder, role, item: shown.item, status, value: value ?? "", note: answer.note})
}

function drawChoicesKeepingFocus() {
  const focused = document.activeElement
  const place = [...at("choices").querySelectorAll("input, button, summary, textarea")].indexOf(focused)
  drawChoices()
  if (place >= 0) at("choices").querySelectorAll("input, button, summary, textarea")[place]?.focus({preventScroll: true})
}

at("note").addEventListener("focus", () => { burst += 1 })
at("note").addEventListener("input", () => {
  answer.note = at("note").value
  put(answer.status, answer.value)
})

// -- keys --------------------------------------------------------------------------------------------------------------

const inField = target => target.matches("textarea, input:not([type=radio], [type=checkbox])")

document.addEventListener("keydown", event => {
  if (at("own").open) return
  if (at("help").open || at("coding").hidden || event.isComposing) return openHelpByKey(event)
  const {target, key} = event
  if (event.altKey || event.metaKey || (event.ctrlKey && key !== "Enter")) return
  if (key === "Escape" && inField(target)) { at("text").focus(); return event.preventDefault() }
  if (key === "Enter" && (event.ctrlKey || !target.matches("textarea, button, summary, a"))) { event.preventDefault(); return act(forward) }
  if (inField(target)) return
  if (key === "ArrowLeft" || key === "ArrowRight") {
    event.preventDefault()
    const step = key === "ArrowLeft" ? -1 : 1
    if (words.length && target === at("text")) return moveCursor(step, event.shiftKey)
    return act(step < 0 ? back : forward)
  }
  if (!at("single-keys").checked || event.ctrlKey) return
  const small = key.toLowerCase()
  const one = book.labels.find(one => one.key === small)
  if (book.level === "interval" && /^[0-9.,]$/.test(key)) { at("number").focus(); return }
  if (one) { event.preventDefault(); return press(one) }
  const does = {u: () => act(undo), n: () => at("note").focus(), e: examples, "?": help,
    [UNCLEAR_KEY]: () => code(answer.status === "unclear" ? "open" : "unclear", null),
    [NONE_KEY]: none, 1: () => book.level === "span" && !book.labels.length && markSelection(book.variable)}[small]
  if (does) { event.preventDefault(); does() }
})

function openHelpByKey(event) {
  if (event.key === "?" && !inField(event.target) && !at("help").open) { event.preventDefault(); help() }
}

function press(one) {
  if (book.level === "span") return markSelection(one.name)
  return book.level === "multi-label" ? toggle(one.name) : code("coded", one.name)
}

function none() {
  if (["multi-label", "span"].includes(book.level)) code("coded", [])
}

function examples() {
  const opened = remembered("examples") !== "open"
  remembered("examples", opened ? "open" : "closed")
  for (const one of document.querySelectorAll("details.examples")) one.open = opened
}

let acting = false
async function act(step) {
  if (acting) return // a key held down must not run ahead of the server
  acting = true
  trouble("")
  try {
    await step()
  } catch (error) {
    trouble(error.refused ? error.message : "The server does not answer. What you coded is kept here; try again in a moment.")
  } finally {
    acting = false
  }
}

function help() {
  const rows = book ? [
    ...book.labels.filter(one => one.key).map(one => [one.key, one.name]),
    ...(["multi-label", "span"].includes(book.level) ? [[NONE_KEY, "none"]] : []),
    [UNCLEAR_KEY, "unclear"], ["Enter", "next text (Ctrl Enter from a field)"], ["←", "back"], ["u", "undo the last coding"], ["n", "note"],
    ["e", "examples"], ["Esc", "leave a field"], ["?", "this help"],
  ] : []
  at("keys").replaceChildren(...rows.flatMap(([key, does]) => [make("dt", {}, make("kbd", {}, key)), make("dd", {}, does)]))
  at("codebook-help").replaceChildren(book ? codebookShown() : "")
  at("help").showModal()
}

async function ownCodings() {
  await flush()
  const {items} = await ask("api/own?coder=" + encodeURIComponent(coder))
  const rows = items.map(one => {
    const {status, value, note} = one.coding
    const said = status !== "coded" ? (status === "open" ? "not coded" : "unclear")
      : book.level === "span" ? plural(value.length, "passage") : Array.isArray(value) ? value.join(", ") || "none of these" : value
    const row = make("button", {type: "button", onclick: () => act(() => goTo(one.item))},
      make("b", {}, said), make("span", {dir: "auto"}, `${one.place}. ${one.beginning}`), note ? make("small", {}, note) : null)
    return make("li", {}, row)
  })
  const filter = () => {
    const wanted = at("own-filter").value.trim().toLowerCase()
    for (const row of rows) row.hidden = !row.textContent.toLowerCase().includes(wanted)
    at("own-count").textContent = `${rows.filter(row => !row.hidden).length} of ${plural(rows.length, "text")}`
  }
  at("own-filter").oninput = filter
  at("own-list").replaceChildren(...rows)
  filter()
  at("own").showModal()
}

async function goTo(item) {
  at("own").close()
  if (!trail.includes(item)) trail.push(item)
  here = trail.indexOf(item)
  await open(item)
}

function codebookShown() {
  return make("div", {className: "codebook"},
    make("p", {}, book.question),
    ...book.labels.flatMap(one => [make("h3", {}, one.name + (one.code === null ? "" : ` (${one.code})`)), one.definition ? make("p", {}, one.definition) : null,
      one.examples.length + one.counter_examples.length ? exampleList(one) : null]).filter(Boolean),
    book.unclear ? make("h3", {}, "When it is unclear") : null, book.unclear ? make("p", {}, book.unclear) : null)
}

// -- buttons and the beginning -----------------------------------------------------------------------------------------

at("back").onclick = () => act(back)
at("next").onclick = () => act(forward)
at("undo").onclick = () => act(undo)
at("leave").onclick = () => act(door)
at("done-door").onclick = () => act(door)
at("help-open").onclick = help
at("own-open").onclick = () => act(ownCodings)
at("adjudicate-open").onclick = () => act(adjudicate)
at("answer").onsubmit = event => event.preventDefault()
at("text").addEventListener("focus", () => words.length && drawText())
at("text").addEventListener("blur", () => words.length && drawText())
at("single-keys").checked = remembered("single-keys") !== "off"
at("single-keys").onchange = () => remembered("single-keys", at("single-keys").checked ? "on" : "off")
at("go-on").checked = remembered("go-on") === "yes"
at("go-on").onchange = () => remembered("go-on", at("go-on").checked ? "yes" : "no")
at("new-coder").onsubmit = event => {
  event.preventDefault()
  act(async () => begin((await ask("api/coders", {name: at("name").value})).name))
}

act(async () => {
  const before = [sessionStorage.getItem("coder"), sessionStorage.getItem("role")]
  await door()
  if (!before[0]) return
  if (before[1] === "adjudicator") { coder = before[0]; return adjudicate() }
  return begin(before[0])
})
