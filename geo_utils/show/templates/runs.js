(root => {
  const MISSING = "–";
  const body = root.querySelector("tbody"), rows = Array.from(body.rows);
  const filter = root.querySelector("input[type=search]"), section = root.querySelector("section");
  const ownPage = root.parentNode === document.body;
  const ticked = new Set();  // places in runs, in the order in which they were ticked
  const told = JSON.parse(root.querySelector("script[type='application/json']").textContent);
  const runs = told.runs.map(run => ({
    ...run, parameters: new Map(run.parameters),
    results: new Map(run.results.map(result => [result.name, result])),
  }));

  // The rows: filtered by words, sorted by their headers.
  const texts = new Map(rows.map(row => [row, (row.id + " " + row.textContent).toLowerCase()]));
  function show() {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const row of rows) row.hidden = !words.every(word => texts.get(row).includes(word));
    const count = rows.filter(row => !row.hidden).length;
    root.querySelector(".geo-shown").textContent = words.length ? count + " of " + rows.length : "";
    const asked = words.length ? "#q=" + encodeURIComponent(filter.value) : "";
    if (ownPage) history.replaceState(null, "", location.href.split("#")[0] + asked);
  }
  function sort(head) {
    const down = head.getAttribute("aria-sort") === "ascending", place = head.cellIndex;
    const key = row => row.cells[place].dataset.key || row.cells[place].textContent;
    for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const numeric = new Intl.Collator("en", {numeric: true});
    const sorted = [...rows].sort((a, b) => (down ? -1 : 1) * numeric.compare(key(a), key(b)));
    body.append(...sorted);
  }
  filter.addEventListener("input", show);
  for (const button of root.querySelectorAll("th button"))
    button.addEventListener("click", () => sort(button.closest("th")));

  // The comparison.
  function make(tag, ...children) {
    const element = document.createElement(tag);
    element.append(...children);
    return element;
  }
  function table(names, chosen, cell) {  // a row a name and a column a run
    if (!names.length) return make("p", "None.");
    const line = (head, cells) => make("tr", make("th", head), ...cells);
    return make("table", line("", chosen.map(run => make("th", run.letter))),
      ...names.map(name => line(name, chosen.map(run => make("td", ...cell(run, name))))));
  }
  const unlike = (chosen, key) => new Set(chosen.map(key)).size > 1;
  const value = (run, name) => run.parameters.get(name) ?? MISSING;
  function cautions(chosen, known) {
    const corpora = chosen.map(run => run.corpus).filter(corpus => corpus !== null);
    const unfinished = chosen.filter(run => !run.finished).map(run => run.letter);
    return [
      ...chosen.filter(run => !known.includes(run)).map(run => run.letter + " recorded no parameters."),
      unlike(chosen, run => run.notebook)
        && "Different notebooks: parameters that not all of them have are left out.",
      new Set(corpora).size > 1
        && "They did not read the same corpus: their numbers are not of one population.",
      unlike(chosen, run => run.source)
        && "Their figures come from different roles or models: see the sources.",
      unlike(chosen, run => run.code) && "They were made by different versions of the code.",
      unfinished.length && "Not finished: " + unfinished.join(", ") + ".",
    ].filter(Boolean).map(note => {
      const shown = make("p", note);
      shown.className = "geo-note";
      return shown;
    });
  }
  function differing(chosen, known) {
    const names = [...new Set(known.flatMap(run => [...run.parameters.keys()]))];
    const mixed = unlike(chosen, run => run.notebook);
    return names.filter(name => unlike(known, run => value(run, name))
      && !(mixed && known.some(run => !run.parameters.has(name))));
  }
  function paired(chosen) {  // two runs, query by query
    const at = id => chosen.find(run => run.id === id), [one, other] = chosen;
    if (chosen.length > 2 || one.notebook !== other.notebook) return [];
    const command = `geo runs --compare ${one.id} --compare ${other.id}`;
    if (!told.paired) return [make("p", "Query by query: ", make("code", command))];
    const found = told.paired.find(pair => at(pair.from) && at(pair.to));
    if (!found) return [];
    const minus = `${at(found.to).letter} minus ${at(found.from).letter}`;
    const clear = found.rows.filter(row => row.clear).map(row => `${row.name} ${row.text}`);
    return [
      make("h3", `Query by query: ${minus} [95 % interval]`),
      make("p", clear.length ? `Clear: ${clear.join("; ")}.` : "No method differs clearly between the two."),
      make("table", ...found.rows.map(row => make("tr", make("th", row.name),
        make("td", row.text), make("td", make("small", row.counts))))),
    ];
  }
  function compare() {
    const chosen = [...ticked].map((i, place) => ({...runs[i], letter: `run ${place + 1}`}));
    section.hidden = chosen.length < 2;
    if (section.hidden) return;
    const known = chosen.filter(run => run.parameters.size);
    const link = run => {
      const shown = make("a", run.id);
      if (run.link) shown.href = run.link;
      return shown;
    };
    const about = {
      run: run => [`${run.notebook} · ${run.variant} · `, link(run)], found: run => [run.found],
      status: run => [run.ended],
      took: run => [run.took], commit: run => [run.commit], source: run => [run.source],
    };
    const every = [...new Set(chosen.flatMap(run => [...run.results.keys()]))];
    const names = every.filter(name => chosen.filter(run => run.results.has(name)).length > 1);
    const alone = every.length - names.length;
    section.replaceChildren(
      table(Object.keys(about), chosen, (run, name) => about[name](run)),
      ...cautions(chosen, known),
      make("h3", "Parameters that differ"),
      table(differing(chosen, known), chosen, (run, name) => [value(run, name)]),
      ...paired(chosen),
      make("h3", "Headlines [95 % interval, or quartiles where named]"),
      table(names, chosen, (run, name) => {
        const result = run.results.get(name);
        return result ? [result.text, make("br"), make("small", result.counts)] : [MISSING];
      }),
      ...(alone ? [make("p", `${alone} more that one run alone has: see its report.`)] : []),
    );
  }
  rows.forEach((row, i) => {
    const box = row.querySelector("input[type=checkbox]");
    const tick = () => { box.checked ? ticked.add(i) : ticked.delete(i); };
    box.addEventListener("change", () => { tick(); compare(); });
    tick();
  });
  compare();
  if (ownPage && location.hash.startsWith("#q=")) {
    filter.value = decodeURIComponent(location.hash.slice(3));
    show();
  }
})(document.currentScript.closest(".geo-runs"));
