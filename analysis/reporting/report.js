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
  const letters = JSON.parse(table.dataset.letters);
  const rows = [...body.rows].map((row) => {
    const values = [...row.cells].map((cell) => cell.dataset.v ?? cell.textContent);
    return { row, values, text: values.join(" ").toLowerCase() };
  });
  const field = document.getElementById("filter");
  const all = document.getElementById("all");
  const shown = document.getElementById("shown");
  const why = document.getElementById("why");
  let sorted = -1;
  let down = false;

  const number = (text) => {
    const power = /^(\d+)(?:\^|\*\*)(\d+)$/.exec(text);
    if (power) return Number(power[1]) ** Number(power[2]);
    return /^[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?$/i.test(text) ? Number(text) : NaN;
  };
  const order = (a, b) => (a < b ? -1 : a > b ? 1 : 0);
  const tests = {
    "=": (o) => o === 0, "!=": (o) => o !== 0, "<": (o) => o < 0, ">": (o) => o > 0, "<=": (o) => o <= 0, ">=": (o) => o >= 0,
  };
  const spelled = { "==": "=", "=<": "<=", "=>": ">=", "≤": "<=", "≥": ">=", "≠": "!=", "<>": "!=" };
  const turned = { "<": ">", ">": "<", "<=": ">=", ">=": "<=", "=": "=", "!=": "!=" };
  const SIGN = "(<=|>=|!=|==|=<|=>|<>|[≤≥≠=<>])";

  // A column is named by its key, by its head as shown, or by the paper's letter; case matters for D and d alone.
  const plain = (name) => name.toLowerCase().replace(/[\s_/]+/g, "");
  const named = new Map();
  heads.forEach((head, i) => named.set(plain(head.textContent), i).set(plain(keys[i]), i));
  const columnOf = (name) => {
    const letter = letters[name] ?? letters[name.toUpperCase()] ?? letters[name.toLowerCase()];
    return named.get(plain(letter ?? name)) ?? -1;
  };
  const known = Object.keys(letters).filter((letter) => keys.includes(letters[letter]));
  const names = [...heads.map((head) => head.textContent), ...keys, ...known];
  const patterns = names
    .sort((a, b) => b.length - a.length)
    .map((name) => name.replace(/[.*+?^${}()|[\]\\]/g, "\\$&").replace(/[\s_/]+/g, "[\\s_/]*"));
  const NAME = `(?<![\\w.])(${patterns.join("|")})`;
  const condition = new RegExp(`${NAME}\\s*${SIGN}`, "gi");
  const turnedRound = new RegExp(`(?<![^\\s(&,])([-+.\\d^*]+(?:e[-+]?\\d+)?)\\s*${SIGN}\\s*${NAME}(?=\\s*${SIGN}|\\s|$)`, "gi");

  // What follows the sign -> the value, and the words behind it. Several numbers ("2, 4", "2 - 4", "2 or 4") are one value.
  const VALUE = {
    true: /^\s*("[^"]*"?|\S*(?:(?:\s*(?:[,;|–-]|\.\.|\bor\b|\bto\b)\s*|\s+)(?=[-+.]?\d)\S+)*)(.*)$/is,
    false: /^\s*("[^"]*"?|\S*(?:\s*\|\s*\S+)*)(.*)$/s,
  };

  // A comparison -> a test of a row. What compares a number column with no number holds nowhere, and a note says why.
  const comparison = (column, sign, value, notes) => {
    const test = tests[sign];
    const key = keys[column];
    const several = value.startsWith('"') ? [value.replace(/"/g, "")] : value.split(/\s*\|\s*|\s+or\s+/i);
    const holds = sign === "!=" ? "every" : "some";
    if (!numeric[column]) {
      return (one) => several[holds]((other) => test(order(one.values[column].toLowerCase(), other.toLowerCase())));
    }
    const wanted = several.map(number);
    if (wanted.some(Number.isNaN)) {
      const found = /[a-z]/i.test(value.replace(/\bto\b/gi, "")) ? [] : value.split(/[^\d.^]+|\.\./).filter((text) => !Number.isNaN(number(text)));
      const thousands = /^\d{1,3}(,\d{3})+$/.test(value);
      const help = thousands ? ` Write ${value.replace(/,/g, "")} without commas.`
        : found.length > 1 ? ` Write ${key}=${found.join("|")} or ${key}>=${found[0]} ${key}<=${found.at(-1)}.` : "";
      notes.push(value ? `${key} is a number, and “${value}” is none.${help}` : `${key} ${sign} needs a number.`);
      return () => false;
    }
    return (one) => {
      const own = number(one.values[column]);
      return !Number.isNaN(own) && wanted[holds]((other) => test(order(own, other)));
    };
  };

  // The filter -> a test of a row: comparisons ("groups=4", "latent dim >= 16", "2 <= G <= 4", "V=2^6|2^10",
  // "state!=done") and texts that a row has. All must hold; "or" separates alternatives.
  const reader = (typed, notes) => {
    const alternatives = [[]];
    const add = (test) => alternatives.at(-1).push(test);
    const addTexts = (text) => {
      const joined = text.replace(new RegExp(`\\s*${SIGN}\\s*`, "g"), "$1");
      for (const [word, quoted] of joined.matchAll(/"([^"]*)"?|\S+/g)) {
        if (/^(or|\|+)$/i.test(word)) alternatives.push([]);
        else if (!/^(and|[&,;]+)$/i.test(word)) {
          const wanted = (quoted ?? word).toLowerCase();
          const unknown = quoted === undefined && new RegExp(`^([^\\s]+?)${SIGN}`).exec(word);
          if (unknown) notes.push(`No column is called “${unknown[1]}”.`);
          add((one) => one.text.includes(wanted));
        }
      }
    };
    // "2 <= G <= 4" is "G>=2 G <= 4".
    const text = typed.replace(turnedRound, (_, value, sign, name, again) => {
      return `${name}${turned[spelled[sign] ?? sign]}${value} ${again ? name : ""}`;
    });
    const found = [...text.matchAll(condition)];
    addTexts(text.slice(0, found[0]?.index));
    found.forEach(({ 0: whole, 1: name, 2: sign, index }, i) => {
      const next = found[i + 1];
      let rest = text.slice(index + whole.length, next?.index);
      if (next) rest = rest.replace(/\s*[,;&]+\s*$/, " ");
      const column = columnOf(name);
      const [, value, words] = VALUE[numeric[column]].exec(rest);
      add(comparison(column, spelled[sign] ?? sign, value, notes));
      addTexts(words);
    });
    const asked = alternatives.filter((one) => one.length);
    return (one) => !asked.length || asked.some((all) => all.every((test) => test(one)));
  };

  const show = () => {
    const notes = [];
    const fits = reader(field.value, notes);
    let count = 0;
    for (const one of rows) {
      const kept = fits(one);
      one.row.hidden = !kept;
      count += kept;
    }
    shown.textContent = `${count} of ${rows.length} row${rows.length === 1 ? "" : "s"}`;
    why.textContent = notes.join(" ");
    field.setAttribute("aria-invalid", notes.length > 0);
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
