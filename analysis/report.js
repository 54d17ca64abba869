"use strict";
// The results table: sorts by the head that is clicked, filters as one types. The state is kept in the address
// (#sort=rfid&down=1&filter=groups=4&all=1), so that a view can be linked to.
(() => {
  const table = document.getElementById("results");
  if (!table) return;
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  const keys = heads.map((head) => head.dataset.k);
  const numeric = heads.map((head) => head.dataset.t === "n");
  const letters = { D: "latent_dim", G: "groups", V: "codebook_size", f: "downsample", d: "group_dim" };
  const rows = [...body.rows].map((row) => {
    const values = [...row.cells].map((cell) => cell.dataset.v ?? cell.textContent);
    return { row, values, text: values.join(" ").toLowerCase() };
  });
  const field = document.getElementById("filter");
  const all = document.getElementById("all");
  const shown = document.getElementById("shown");
  let sorted = -1;
  let down = false;

  const number = (text) => {
    if (text.trim() === "") return NaN;
    const power = /^(\d+)\^(\d+)$/.exec(text);
    return power ? Number(power[1]) ** Number(power[2]) : Number(text);
  };
  const order = (a, b) => (a < b ? -1 : a > b ? 1 : 0);
  const tests = {
    "=": (o) => o === 0, "!=": (o) => o !== 0, "<": (o) => o < 0, ">": (o) => o > 0, "<=": (o) => o <= 0, ">=": (o) => o >= 0,
  };

  // One word of the filter -> a test of a row: "groups=4", "rfid<200", "V>=2^10", "state!=done", or any text.
  const reader = (word) => {
    const parts = /^([\w.]+)(<=|>=|!=|=|<|>)(.+)$/.exec(word);
    const column = parts ? keys.indexOf(letters[parts[1]] ?? parts[1]) : -1;
    if (column < 0) return (one) => one.text.includes(word.toLowerCase());
    const test = tests[parts[2]];
    if (!numeric[column]) return (one) => test(order(one.values[column].toLowerCase(), parts[3].toLowerCase()));
    const wanted = number(parts[3]);
    return (one) => {
      const value = number(one.values[column]);
      return !Number.isNaN(value) && test(order(value, wanted));
    };
  };

  const show = () => {
    const words = field.value.split(/\s+/).filter(Boolean).map(reader);
    let count = 0;
    for (const one of rows) {
      const fits = words.every((test) => test(one));
      one.row.hidden = !fits;
      count += fits;
    }
    shown.textContent = `${count} of ${rows.length} rows`;
    table.classList.toggle("all", all.checked);
  };

  const sort = () => {
    heads.forEach((head, i) => {
      if (i === sorted) head.setAttribute("aria-sort", down ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    });
    if (sorted < 0) return;
    const sign = down ? -1 : 1;
    const ranked = rows.map((one, place) => {
      const text = one.values[sorted];
      return { one, place, value: numeric[sorted] ? number(text) : text, empty: text === "" };
    });
    // What is empty comes last either way, and equals keep their order.
    ranked.sort((a, b) => a.empty - b.empty || (a.empty ? 0 : sign * order(a.value, b.value)) || a.place - b.place);
    body.append(...ranked.map((entry) => entry.one.row));
  };

  const keep = () => {
    const state = new URLSearchParams();
    if (sorted >= 0) state.set("sort", keys[sorted]);
    if (down) state.set("down", "1");
    if (field.value) state.set("filter", field.value);
    if (all.checked) state.set("all", "1");
    history.replaceState(null, "", state.size ? `#${state}` : location.pathname);
  };

  const restore = () => {
    const state = new URLSearchParams(location.hash.slice(1));
    if (!["sort", "filter", "all"].some((name) => state.has(name))) return;
    sorted = keys.indexOf(state.get("sort"));
    down = state.get("down") === "1";
    field.value = state.get("filter") ?? "";
    all.checked = state.get("all") === "1";
  };

  heads.forEach((head, i) => {
    head.querySelector("button").addEventListener("click", () => {
      down = sorted === i && !down;
      sorted = i;
      sort();
      keep();
    });
  });
  field.addEventListener("input", () => { show(); keep(); });
  all.addEventListener("change", () => { show(); keep(); });
  window.addEventListener("hashchange", () => { restore(); sort(); show(); });
  document.getElementById("tools").hidden = false;
  restore();
  sort();
  show();
})();
