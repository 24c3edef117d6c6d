(root => {
  const AT_ONCE = 100, MOST_QUERIES = 200;
  const at = selector => root.querySelector(selector);
  const chosen = {method: at("[name=method]"), verdict: at("[name=verdict]"), query: at("[name=query]")};
  let told, found = [], shown = 0;

  function make(tag, text, name) {
    const element = document.createElement(tag);
    element.textContent = text ?? "";
    if (name) element.className = name;
    return element;
  }
  async function unpack() {
    const packed = atob(at("script[type='application/json']").textContent);
    const bytes = Uint8Array.from(packed, letter => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    const read = JSON.parse(await new Response(stream).text());
    const words = read.rows.map(row => [...read.queries[row[0]], read.points[row[2]]].join(" ").toLowerCase());
    read.rows = read.rows.map(([query, method, point, page, repeat, verdict, answer, reason, supported, pawc], i) =>
      ({query, method, point, page, repeat, verdict, answer, reason, supported, pawc, words: words[i]}));
    return read;
  }
  function open(entry, row) {  // its texts, when somebody asks for them
    const texts = make("div", "", "geo-texts");
    for (const [title, text] of [["Page", told.pages[row.page] ?? "no page"], ["Answer", row.answer || "no answer"]]) {
      const part = document.createElement("section");
      part.append(make("b", title), make("div", text));
      texts.append(part);
    }
    const seen = row.pawc === null ? "" : ` Visibility of the target (PAWC): ${row.pawc}.`;
    entry.append(make("p", `Key point: ${told.points[row.point]}`), make("p", row.reason.replace(/\.?$/, row.reason && ".") + seen), texts);
  }
  function more() {
    for (const row of found.slice(shown, shown + AT_ONCE)) {
      const entry = make("details"), head = make("summary");
      const [name, query] = told.queries[row.query];
      head.append(make("span", row.verdict, `geo-badge geo-${row.verdict}`),
        ` ${told.methods[row.method]}, answer ${row.repeat + 1} · ${name}: ${query}`);
      entry.append(head);
      entry.addEventListener("toggle", () => open(entry, row), {once: true});
      at(".geo-list").append(entry);
    }
    shown = Math.min(shown + AT_ONCE, found.length);
    at(".geo-more").hidden = shown === found.length;
    at(".geo-count").textContent = `${found.length} of ${told.rows.length} samples, ${shown} shown`;
  }
  function filter() {
    const asked = chosen.query.value, words = asked.toLowerCase().split(/\s+/).filter(Boolean);
    const one = told.queries.findIndex(([name]) => name === asked);  // an id means this query alone
    const method = chosen.method.value && Number(chosen.method.value), verdict = chosen.verdict.value;
    found = told.rows.filter(row => (method === "" || row.method === method)
      && (!verdict || row.verdict === verdict) && (one < 0 ? words.every(word => row.words.includes(word)) : row.query === one));
    shown = 0;
    at(".geo-list").replaceChildren();
    more();
  }
  function map() {
    const cells = new Map();
    for (const row of told.rows) {
      const key = `${row.query} ${row.method}`, [sum, count] = cells.get(key) ?? [0, 0];
      if (row.supported !== null) cells.set(key, [sum + row.supported, count + 1]);
    }
    const table = make("table"), head = table.createTHead().insertRow(), body = table.createTBody();
    head.append(make("td"), ...told.methods.map(name => make("th", name)));
    told.queries.slice(0, MOST_QUERIES).forEach(([name, text], query) => {
      const line = body.insertRow(), title = make("th", name);
      title.title = text;
      line.append(title);
      told.methods.forEach((label, method) => {
        const [sum, count] = cells.get(`${query} ${method}`) ?? [0, 0], share = sum / count;
        const button = make("button", count ? `${Math.round(100 * share)}%` : "–");
        button.title = `${label}, ${text}: ${sum} of ${count} answers`;
        if (count) button.style.background = `rgb(46 125 50 / ${0.7 * share})`;
        button.addEventListener("click", () => {
          chosen.method.value = method;
          chosen.verdict.value = "";
          chosen.query.value = name;
          filter();
          at(".geo-count").scrollIntoView({block: "start"});
        });
        line.insertCell().append(button);
      });
    });
    at(".geo-map").append(table);
    if (told.queries.length > MOST_QUERIES)
      at(".geo-map").append(make("p", `The first ${MOST_QUERIES} of ${told.queries.length} queries.`));
  }
  at("details").addEventListener("toggle", async () => {
    told = await unpack();
    const option = (name, value) => Object.assign(make("option", name), {value});
    chosen.method.append(...told.methods.map(option));
    const verdicts = [...new Set(told.rows.map(row => row.verdict))].sort();
    chosen.verdict.append(...verdicts.map(name => option(name, name)));
    for (const field of Object.values(chosen)) field.addEventListener("input", filter);
    at(".geo-more").addEventListener("click", more);
    map();
    filter();
  }, {once: true});
})(document.currentScript.closest(".geo-samples"));
