(root => {
  const MISSING = "–", WIDE = 6;  // more runs than that stand one below the other
  const body = root.querySelector("tbody"), rows = Array.from(body.rows);
  const filter = root.querySelector("input[type=search]"), section = root.querySelector("section");
  const ownPage = root.parentNode === document.body;
  const ticked = new Set();  // places in runs, in the order in which they were ticked
  const runs = JSON.parse(root.querySelector("script[type='application/json']").textContent)
    .map(run => ({
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
  function letter(place) {
    return (place < 26 ? "" : letter(Math.floor(place / 26) - 1)) + String.fromCharCode(65 + place % 26);
  }
  function table(names, chosen, cell) {  // a row a name and a column a run, or the other way round
    if (!names.length) return make("p", "None.");
    const letters = chosen.map(run => run.letter), turned = chosen.length > WIDE;
    const line = (head, cells) => make("tr", make("th", head), ...cells);
    const td = (run, name) => make("td", ...cell(run, name));
    return make("table", ...(turned
      ? [line("", names.map(name => make("th", name))),
         ...chosen.map(run => line(run.letter, names.map(name => td(run, name))))]
      : [line("", letters.map(name => make("th", name))),
         ...names.map(name => line(name, chosen.map(run => td(run, name))))]));
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
  function bar(result, all) {  // on one axis for all runs: a probability's from 0 to 1
    const drawn = all.filter(other => other.low !== null), ends = drawn.flatMap(r => [r.low, r.mean, r.high]);
    const low = result.probability ? 0 : Math.min(...ends), high = result.probability ? 1 : Math.max(...ends);
    const at = number => 4 + 132 * (high > low ? (number - low) / (high - low) : 0.5);
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    for (const [tag, own] of [
      ["line", {x1: at(result.low), x2: at(result.high), y1: 5, y2: 5, "stroke-width": 4, opacity: 0.45}],
      ["circle", {cx: at(result.mean), cy: 5, r: 4}],
    ]) {
      const part = document.createElementNS(svg.namespaceURI, tag);
      for (const [key, number] of Object.entries(own)) part.setAttribute(key, number);
      part.setAttribute("stroke", result.shade);
      part.setAttribute("fill", result.shade);
      svg.append(part);
    }
    return svg;
  }
  function claim(chosen) {  // where the runs differ most, and whether their intervals meet
    const all = chosen.flatMap(run => [...run.results.values()]).filter(r => r.low !== null);
    if (!all.length) return "No run has a headline number with an interval.";
    const shown = all.some(r => r.probability) ? all.filter(r => r.probability) : all;
    const spreads = [...new Set(shown.map(result => result.name))].map(name => {
      const found = chosen.map(run => ({letter: run.letter, ...run.results.get(name)}))
        .filter(r => Number.isFinite(r.mean) && r.low !== null);
      const low = found.reduce((a, b) => b.mean < a.mean ? b : a), high = found.reduce((a, b) => b.mean > a.mean ? b : a);
      return {count: found.length, spread: high.mean - low.mean, low, high};
    }).filter(found => found.count > 1);
    if (!spreads.length) return "The runs have no headline number in common.";
    const {spread, low, high} = spreads.reduce((a, b) => b.spread > a.spread ? b : a);
    if (!spread) return `The runs agree; ${low.what}: ${low.mean.toFixed(3)} in all of them.`;
    const meet = low.high < high.low ? "do not meet" : "overlap";
    return `${low.what} differs most: ${low.mean.toFixed(3)} in ${low.letter}, `
      + `${high.mean.toFixed(3)} in ${high.letter}; their intervals ${meet}.`;
  }
  function kind(chosen) {
    const named = new Set(chosen.flatMap(run => [...run.results.values()])
      .filter(r => r.low !== null).map(r => r.name.includes("quartiles")));
    if (!named.has(true)) return "95 % interval";
    return named.has(false) ? "95 % interval, or quartiles where named" : "quartiles";
  }
  function compare() {
    const chosen = [...ticked].map((i, place) => ({...runs[i], letter: letter(place)}));
    section.hidden = chosen.length < 2;
    if (section.hidden) return;
    const known = chosen.filter(run => run.parameters.size);
    const link = run => {
      const shown = make("a", run.id);
      if (run.link) shown.href = run.link;
      return shown;
    };
    const about = {
      run: run => [`${run.notebook} · ${run.variant} · `, link(run)], status: run => [run.ended],
      took: run => [run.took], commit: run => [run.commit], source: run => [run.source],
    };
    const names = [...new Set(chosen.flatMap(run => [...run.results.keys()]))];
    section.replaceChildren(
      table(Object.keys(about), chosen, (run, name) => about[name](run)),
      ...cautions(chosen, known),
      make("h3", "Parameters that differ"),
      table(differing(chosen, known), chosen, (run, name) => [value(run, name)]),
      make("h3", `Headlines [${kind(chosen)}]`),
      make("p", claim(chosen)),
      table(names, chosen, (run, name) => {
        const result = run.results.get(name);
        if (!result) return [MISSING];
        const all = chosen.map(other => other.results.get(name)).filter(Boolean);
        return [result.text, ...(result.low === null ? [] : [bar(result, all)]), make("br"), make("small", result.counts)];
      }),
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
