"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const table = document.getElementById("sequences");
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const heads = [...table.querySelectorAll("th[data-key]")];
  const filter = document.getElementById("filter");
  const count = document.getElementById("count");
  const panel = document.getElementById("detail");
  const slider = document.getElementById("frame");
  const readout = document.getElementById("readout");
  const chart = document.getElementById("chart");
  const state = { sort: "", order: "ascending", filter: "", sequence: "" };
  const WIDTH = 1000, HEIGHT = 220, LEFT = 36, TOP = 8, BOTTOM = 24;
  const ABSENT = 255;
  let shown = null;

  const value = (row, position) => {
    const text = row.cells[position].dataset.value;
    return text === undefined ? row.cells[position].textContent.trim() : text === "" ? null : Number(text);
  };

  function sort(key, order) {
    const position = heads.findIndex((head) => head.dataset.key === key);
    if (position < 0) return;
    const sign = order === "descending" ? -1 : 1;
    const sorted = rows.map((row) => [value(row, position), row]).sort(([a], [b]) => {
      // What is not known stands last in either order.
      if (a === null || b === null) return (a === null) - (b === null);
      return sign * (typeof a === "string" ? a.localeCompare(b, "en", { numeric: true }) : a - b);
    });
    body.append(...sorted.map(([, row]) => row));
    for (const head of heads) head.setAttribute("aria-sort", head.dataset.key === key ? order : "none");
    Object.assign(state, { sort: key, order });
  }

  function apply(text) {
    const wanted = text.toLowerCase().split(/\s+/).filter(Boolean);
    let left = 0;
    for (const row of rows) {
      row.hidden = !wanted.every((word) => row.dataset.text.includes(word));
      left += !row.hidden;
    }
    count.textContent = `${left} of ${rows.length} sequences`;
    state.filter = text;
  }

  function svg(name, attributes, parent) {
    const node = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, one] of Object.entries(attributes)) node.setAttribute(key, one);
    parent.append(node);
    return node;
  }

  const bytes = (text) => Uint8Array.from(atob(text), (one) => one.charCodeAt(0));
  const across = (frame, frames) => LEFT + (WIDTH - LEFT - 8) * frame / Math.max(1, frames - 1);
  const down = (percent) => TOP + (HEIGHT - TOP - BOTTOM) * (1 - percent / 100);

  function select(name) {
    const row = rows.find((one) => one.dataset.name === name);
    if (!row) return;
    for (const one of rows) one.setAttribute("aria-current", String(one === row));
    const overlaps = data.overlaps[name].map(bytes);
    const frames = overlaps[0].length;
    shown = { name, overlaps, frames };
    chart.replaceChildren();
    for (let start = 0, frame = 0; frame <= frames; frame++) {
      const gone = frame < frames && overlaps[0][frame] === ABSENT;
      if (gone) continue;
      if (frame > start) {
        const x = across(start - 0.5, frames);
        svg("rect", { class: "absent", x, y: down(100), height: down(0) - down(100), width: across(frame - 0.5, frames) - x }, chart);
      }
      start = frame + 1;
    }
    for (const percent of [0, 25, 50, 75, 100]) {
      svg("line", { class: "grid", x1: LEFT, x2: WIDTH - 8, y1: down(percent), y2: down(percent) }, chart);
      svg("text", { x: LEFT - 6, y: down(percent) + 4, "text-anchor": "end" }, chart).textContent = percent / 100;
    }
    for (const share of [0, 0.5, 1]) {
      const frame = Math.round(share * (frames - 1));
      const anchor = share === 0 ? "start" : share === 1 ? "end" : "middle";
      svg("text", { x: across(frame, frames), y: HEIGHT - 6, "text-anchor": anchor }, chart).textContent = frame;
    }
    overlaps.forEach((values, tracker) => {
      let path = "", pen = "M";
      values.forEach((percent, frame) => {
        if (percent === ABSENT) { pen = "M"; return; }
        path += `${pen}${across(frame, frames).toFixed(1)} ${down(percent).toFixed(1)}`;
        pen = "L";
      });
      svg("path", { class: `curve c${tracker % 8} d${Math.floor(tracker / 8) % 4}`, d: path }, chart);
    });
    svg("line", { class: "cursor", id: "cursor", y1: down(100), y2: down(0) }, chart);
    document.getElementById("detail-name").textContent = name;
    panel.hidden = false;
    slider.max = frames - 1;
    slider.value = 0;
    state.sequence = name;
    point();
  }

  function point() {
    const frame = Number(slider.value);
    const x = across(frame, shown.frames);
    const cursor = document.getElementById("cursor");
    cursor.setAttribute("x1", x);
    cursor.setAttribute("x2", x);
    const told = shown.overlaps.map((values, tracker) =>
      `${data.trackers[tracker]} ${values[frame] === ABSENT ? "(target absent)" : (values[frame] / 100).toFixed(2)}`);
    readout.textContent = `frame ${frame}: ${told.join(", ")}`;
  }

  function remember() {
    const kept = Object.entries(state).filter(([key, one]) => one && (key !== "order" || state.sort));
    history.replaceState(null, "", "#" + new URLSearchParams(kept));
  }

  function restore() {
    const wanted = new URLSearchParams(location.hash.slice(1));
    if (wanted.has("filter")) filter.value = wanted.get("filter");
    apply(filter.value);
    if (wanted.has("sort")) sort(wanted.get("sort"), wanted.get("order") === "descending" ? "descending" : "ascending");
    if (wanted.has("sequence")) select(wanted.get("sequence"));
  }

  for (const head of heads) {
    head.querySelector("button").addEventListener("click", () => {
      const key = head.dataset.key;
      // Numbers are looked at from the top first, names from A.
      const first = key === "name" ? "ascending" : "descending";
      const other = first === "ascending" ? "descending" : "ascending";
      sort(key, state.sort === key && state.order === first ? other : first);
      remember();
    });
  }
  filter.addEventListener("input", () => { apply(filter.value); remember(); });
  for (const row of rows) {
    row.addEventListener("click", () => { select(row.dataset.name); remember(); });
  }
  slider.addEventListener("input", point);
  chart.addEventListener("pointermove", (event) => {
    if (!shown) return;
    const box = chart.getBoundingClientRect();
    const x = (event.clientX - box.left) / box.width * WIDTH;
    const frame = Math.round((x - LEFT) / (WIDTH - LEFT - 8) * (shown.frames - 1));
    slider.value = Math.min(shown.frames - 1, Math.max(0, frame));
    point();
  });
  window.addEventListener("hashchange", restore);
  restore();
})();
