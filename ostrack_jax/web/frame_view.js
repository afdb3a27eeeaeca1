// A frame in which boxes are drawn: by dragging, or by a click on one corner and another on the opposite one.
// Every number is in pixels of the frame, whatever size it is shown at.
const SVG = 'http://www.w3.org/2000/svg';
// In pixels of the screen: a shorter way is a click.
const SHORTEST_DRAG = 4;
// Of the window's height, in hundredths.
const HIGHEST = 44;
const stage = element.querySelector('.stage');
const empty = element.querySelector('.empty');
const picture = stage.querySelector('img');
const overlay = stage.querySelector('svg');
let shown = null;
let corner = null;  // the first of two clicks
let pressed = null;  // where the button went down, and where that was on the screen
let pointer = null;

function make(name, attributes, text) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  overlay.append(made);
}

function between(a, b) {
  return [Math.min(a.x, b.x), Math.min(a.y, b.y), Math.abs(a.x - b.x), Math.abs(a.y - b.y)];
}

function draw() {
  overlay.replaceChildren();
  if (!shown) return;
  overlay.setAttribute('viewBox', `0 0 ${shown.width} ${shown.height}`);
  // So that letters are as large on the screen for every frame.
  const scale = shown.width / (stage.clientWidth || shown.width);
  for (const box of shown.boxes) {
    const [x, y, width, height] = box.box_xywh;
    make('rect', {x, y, width, height, stroke: box.colour});
    const size = 14 * scale, wide = (6 + 8 * box.label.length) * scale, top = Math.max(0, y - 18 * scale);
    make('rect', {x, y: top, width: wide, height: 18 * scale, fill: box.colour, class: 'plate'});
    make('text', {x: x + 3 * scale, y: top + size, 'font-size': size, fill: box.ink}, box.label);
  }
  const from = pressed || corner;
  if (from && pointer) {
    const [x, y, width, height] = between(from, pointer);
    make('rect', {x, y, width, height, class: 'draft'});
  }
  if (corner) make('circle', {cx: corner.x, cy: corner.y, r: 4 * scale});
}

function place(event) {
  const area = stage.getBoundingClientRect();
  const inside = (value, size) => Math.min(Math.max(value, 0), 1) * size;
  return {
    x: inside((event.clientX - area.left) / area.width, shown.width),
    y: inside((event.clientY - area.top) / area.height, shown.height),
    left: event.clientX,
    top: event.clientY,
  };
}

function finish(a, b) {
  corner = pressed = null;
  trigger('draw', {box_xywh: between(a, b), frame: shown.frame});
  draw();
}

stage.addEventListener('pointerdown', event => {
  if (event.button !== 0 || !shown) return;
  event.preventDefault();
  stage.setPointerCapture(event.pointerId);
  pressed = pointer = place(event);
  draw();
});
stage.addEventListener('pointermove', event => {
  if (!shown || !(pressed || corner)) return;
  pointer = place(event);
  draw();
});
stage.addEventListener('pointerup', event => {
  if (!pressed) return;
  const end = place(event);
  const way = Math.max(Math.abs(end.left - pressed.left), Math.abs(end.top - pressed.top));
  if (way >= SHORTEST_DRAG) {
    finish(pressed, end);
  } else if (corner) {
    finish(corner, end);
  } else {
    corner = pointer = end;
    pressed = null;
    draw();
  }
});
const forget = () => { corner = pressed = null; draw(); };
stage.addEventListener('pointercancel', forget);
window.addEventListener('keydown', event => { if (event.key === 'Escape') forget(); });
new ResizeObserver(draw).observe(stage);

function show() {
  const next = props.value;
  if (!shown || !next || next.frame !== shown.frame || next.clip !== shown.clip) corner = pressed = null;
  shown = next;
  stage.hidden = !shown;
  empty.hidden = Boolean(shown);
  if (shown) {
    picture.src = shown.source;
    // As wide as there is room for, yet never so high that the buttons below leave the window.
    const ratio = shown.width / shown.height;
    stage.style.aspectRatio = ratio;
    stage.style.maxWidth = `${HIGHEST * ratio}vh`;
    stage.setAttribute('aria-label', `Frame ${shown.frame}; drag to draw a box, or give its numbers below`);
  }
  draw();
}
watch('value', show);
show();
