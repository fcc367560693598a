'use strict';
// The page asks for one document every few seconds and draws what the address's
// fragment names. Nothing that comes from the cluster is ever read as HTML.

const EVERY = 3000; // milliseconds between two questions
const ROWS = 500;   // rows of a table that are drawn at once
const STATES = {
  mutual_tls: 'mutual TLS', plaintext: 'plaintext', mixed: 'mixed', foreign_tls: 'TLS of the application', not_observed: 'not observed',
  own_port: 'plaintext (health and metrics)',
};
// What podseal strict says, the worst first, and how it is drawn.
const VERDICTS = { 'no-go': 'plaintext', wait: 'mixed', except: 'mixed', go: 'mutual_tls', strict: 'mutual_tls' };
const WEAK = new Set(['plaintext', 'mixed']);
const el = (id) => document.getElementById(id);
let data = null;      // the last document
let drawn = '';       // what it was drawn from
let failed = '';      // why there is no newer one
let order = { column: 'secured', down: false };
let rows = ROWS;

// make returns an element; children are elements, or text.
function make(tag, attributes, ...children) {
  const e = document.createElement(tag);
  for (const [k, v] of Object.entries(attributes || {})) {
    if (k.startsWith('on')) e.addEventListener(k.slice(2), v);
    else if (v !== false && v !== undefined && v !== null) e.setAttribute(k, v === true ? '' : v);
  }
  e.append(...children.flat().filter((c) => c !== null && c !== undefined));
  return e;
}

function peerName(p) {
  switch (p.kind) {
    case 'workload': return p.name;
    case 'identity': return 'sa/' + p.name;
    case 'rest': return '(others)';
    default: return p.kind + '/' + (p.name || p.address || '');
  }
}
const peerKey = (p) => (p.namespace || '') + '/' + peerName(p);

function bytes(n) {
  const units = ['B', 'kB', 'MB', 'GB', 'TB'];
  let i = 0;
  while (n >= 10000 && i < units.length - 1) { n /= 1000; i++; }
  return Math.round(n) + ' ' + units[i];
}
function span(ms) {
  const s = Math.max(0, Math.round(ms / 1000));
  if (s < 120) return s + ' s';
  if (s < 7200) return Math.round(s / 60) + ' min';
  if (s < 172800) return Math.round(s / 3600) + ' h';
  return Math.round(s / 86400) + ' d';
}
function sum(link, what) {
  return link.shares.reduce((n, s) => n + what(s), 0);
}
const connections = (l) => sum(l, (s) => s.connections);
const volume = (l) => sum(l, (s) => s.bytes_sent + s.bytes_received);
const lastSeen = (l) => Math.max(...l.shares.map((s) => Date.parse(s.last_seen)));
function refusals(l) {
  const all = {};
  for (const s of l.shares) for (const [reason, n] of Object.entries(s.refusals || {})) all[reason] = (all[reason] || 0) + n;
  return Object.entries(all).map(([reason, n]) => `${reason} (${n})`).join(', ');
}
// shares says how much of a mixed link was what. What is not nothing is never 0 %.
function secured(l) {
  if (l.state !== 'mixed') return STATES[l.state] || l.state;
  const count = {};
  for (const s of l.shares) if (s.connections && s.security !== 'not_observed') count[s.security] = (count[s.security] || 0) + s.connections;
  const total = Object.values(count).reduce((a, b) => a + b, 0);
  return 'mixed: ' + Object.entries(count).map(([k, n]) => `${Math.min(99, Math.max(1, Math.round(100 * n / total)))}% ${STATES[k] || k}`).join(', ');
}

// What the filters let pass.
function wanted() {
  const ns = el('namespace').value, find = el('find').value.trim().toLowerCase(), weak = el('weak').checked;
  const has = (name, namespace) => (!ns || namespace === ns) && (!find || (namespace + '/' + name).toLowerCase().includes(find));
  const links = data.edges.filter((l) => (!weak || (l.state !== 'mutual_tls' && l.state !== 'own_port')) &&
    (has(peerName(l.source), l.source.namespace || '') || has(peerName(l.destination), l.destination.namespace || '')));
  return { has, links };
}

// ---- tables

function table(caption, columns, items, cells) {
  const sorted = [...items];
  const by = columns.find((c) => c.key === order.column) || columns[0];
  sorted.sort((a, b) => {
    const x = by.value(a), y = by.value(b);
    const n = typeof x === 'number' ? x - y : String(x).localeCompare(String(y));
    return order.down ? -n : n;
  });
  const head = make('tr', {}, columns.map((c) => make('th', {
    scope: 'col', 'aria-sort': c === by ? (order.down ? 'descending' : 'ascending') : 'none',
  }, make('button', { type: 'button', onclick: () => { order = { column: c.key, down: order.column === c.key && !order.down }; draw(true); } }, c.name))));
  const body = make('tbody', {}, sorted.slice(0, rows).map((i) => make('tr', {}, cells(i))));
  if (sorted.length === 0) body.append(make('tr', {}, make('td', { colspan: columns.length, class: 'quiet' }, 'Nothing.')));
  const out = [make('div', { class: 'wide' }, make('table', {}, make('caption', {}, caption), make('thead', {}, head), body))];
  if (sorted.length > rows) {
    out.push(make('p', { class: 'more' }, make('button', { type: 'button', onclick: () => { rows += ROWS; draw(true); } }, `Show ${Math.min(ROWS, sorted.length - rows)} more of ${sorted.length}`)));
  }
  return out;
}
const td = (...c) => make('td', {}, ...c);
const number = (c) => make('td', { class: 'number' }, c);
const workloadLink = (p) => p.kind === 'workload'
  ? make('a', { href: '#workload/' + encodeURIComponent(p.namespace + '/' + p.name) }, peerKey(p)) : peerKey(p).replace(/^\//, '');

function edgeTable(links, caption) {
  const rank = ['plaintext', 'mixed', 'foreign_tls', 'not_observed', 'own_port', 'mutual_tls'];
  return table(caption, [
    { key: 'from', name: 'From', value: (l) => peerKey(l.source) },
    { key: 'to', name: 'To', value: (l) => peerKey(l.destination) },
    { key: 'port', name: 'Port', value: (l) => l.port },
    { key: 'secured', name: 'Secured', value: (l) => rank.indexOf(l.state) },
    { key: 'connections', name: 'Connections', value: (l) => -connections(l) },
    { key: 'bytes', name: 'Bytes', value: (l) => -volume(l) },
    { key: 'refused', name: 'Refused', value: (l) => refusals(l) || '~' },
    { key: 'last', name: 'Last seen', value: (l) => -lastSeen(l) },
  ], links, (l) => [
    td(workloadLink(l.source)), td(workloadLink(l.destination)), number(l.port), make('td', { class: l.state }, secured(l)),
    number(connections(l)), number(bytes(volume(l))), td(refusals(l)), td(span(Date.parse(data.time) - lastSeen(l)) + ' ago'),
  ]);
}

function drawTable(main) {
  main.append(...edgeTable(wanted().links, 'Who talks to whom, since each proxy was started'));
  if (data.not_observed.length) {
    main.append(make('p', { class: 'quiet' }, `${data.not_observed.length} pods have no proxy that tells: what they say to one another is not here.`));
  }
}

function drawCertificates(main) {
  const { has } = wanted(), now = Date.parse(data.time);
  const proxies = data.proxies.filter((p) => has(p.workload || p.pod, p.namespace));
  const left = (p) => p.not_after ? Date.parse(p.not_after) - now : -1;
  main.append(...table('Every proxy and its certificate, the first to end first', [
    { key: 'secured', name: 'Good for', value: left },
    { key: 'pod', name: 'Pod', value: (p) => p.namespace + '/' + p.pod },
    { key: 'identity', name: 'Identity', value: (p) => p.identity || '' },
    { key: 'serial', name: 'Serial', value: (p) => p.serial || '' },
    { key: 'config', name: 'Configuration', value: (p) => p.config },
    { key: 'version', name: 'Version', value: (p) => p.version || '' },
  ], proxies, (p) => [
    make('td', { class: left(p) < 0 ? 'plaintext' : '' }, p.not_after ? (left(p) < 0 ? 'EXPIRED' : span(left(p))) : 'unknown'),
    td(p.namespace + '/' + p.pod), td(p.identity || ''), td(p.serial || ''),
    make('td', { class: p.config === 'SYNCED' ? '' : 'mixed' }, p.config + (p.reason ? ': ' + p.reason : '')), td(p.version || ''),
  ]));
}

const objectName = (f) => `${f.kind} ${f.namespace ? f.namespace + '/' : ''}${f.name}`;

function drawFindings(main) {
  if (!data.findings) { main.append(make('p', {}, 'The findings could not be had: ' + (data.findings_error || 'the control plane does not tell') + '.')); return; }
  const { has } = wanted();
  const rank = ['error', 'warning', 'info'];
  main.append(...table('What will not work as written, or wants a look', [
    { key: 'secured', name: 'Level', value: (f) => rank.indexOf(f.level.toLowerCase()) },
    { key: 'code', name: 'Code', value: (f) => f.code },
    { key: 'object', name: 'Object', value: objectName },
    { key: 'message', name: 'What', value: (f) => f.message },
  ], data.findings.filter((f) => has(f.name, f.namespace || '')), (f) => [
    make('td', { class: f.level.toLowerCase() === 'error' ? 'plaintext' : f.level.toLowerCase() === 'warning' ? 'mixed' : '' }, f.level), td(f.code), td(objectName(f)), td(f.message),
  ]));
}

// drawStrict shows what podseal strict says of each workload and port.
function drawStrict(main) {
  const { has } = wanted(), now = Date.parse(data.time);
  const rank = Object.keys(VERDICTS);
  const all = [];
  for (const w of data.strict.workloads) {
    if (!has(w.name, w.namespace)) continue;
    const key = w.namespace + '/' + w.name;
    const own = { key, observed: w.observed_ns / 1e6 };
    if (!(w.ports || []).length) all.push({ ...own, verdict: w.verdict, because: w.because, mode: '', port: '', callers: [] });
    for (const p of w.ports || []) all.push({ ...own, verdict: p.verdict, because: p.because, mode: p.mode, port: p.port, callers: p.callers || [] });
  }
  main.append(...table(`May each port be STRICT? What was seen within ${span(data.strict.window_ns / 1e6)}`, [
    { key: 'secured', name: 'Verdict', value: (w) => rank.indexOf(w.verdict) },
    { key: 'workload', name: 'Workload', value: (w) => w.key },
    { key: 'port', name: 'Port', value: (w) => w.port || 0 },
    { key: 'mode', name: 'Mode now', value: (w) => w.mode },
    { key: 'callers', name: 'Callers without mutual TLS, and what each needs', value: (w) => -w.callers.length },
    { key: 'observed', name: 'Observed for', value: (w) => w.observed },
  ], all, (w) => [
    make('td', { class: VERDICTS[w.verdict] || 'mixed' }, w.verdict), td(make('a', { href: '#workload/' + encodeURIComponent(w.key) }, w.key)),
    number(w.port || 'others'), td(w.mode),
    td(w.because, make('ul', {}, w.callers.map((c) => make('li', { class: c.blocks ? '' : 'quiet' },
      `${peerKey(c.peer).replace(/^\//, '')} (${c.what}, last ${span(now - Date.parse(c.last_seen))} ago): ${c.needs}`)))),
    td(w.observed ? span(w.observed) : 'not at all'),
  ]), make('p', { class: 'quiet' }, '"podseal strict" says the same, makes the change, and takes it back if it refuses somebody.'));
}

function drawWorkload(main, key) {
  const pods = data.pods.filter((p) => p.namespace + '/' + p.workload === key);
  const heading = make('h2', {}, key);
  main.append(heading);
  if (!pods.length) { main.append(make('p', {}, 'No pod of this workload is known.')); return; }
  for (const p of pods) {
    const proxy = data.proxies.find((x) => x.namespace === p.namespace && x.pod === p.name);
    const modes = Object.entries(p.port_modes || {}).map(([port, m]) => `${port}: ${m}`).join(', ');
    main.append(make('section', {}, make('h2', {}, p.name), make('dl', {},
      make('dt', {}, 'In the mesh'), make('dd', {}, p.mesh ? 'yes' : 'no'),
      make('dt', {}, 'Identity'), make('dd', {}, p.identity || ''),
      make('dt', {}, 'Mode'), make('dd', {}, (p.mode || '') + (modes ? '; ports ' + modes : '')),
      make('dt', {}, 'Node, addresses'), make('dd', {}, (p.node || '') + ' ' + (p.addresses || []).join(', ')),
      proxy ? [make('dt', {}, 'Proxy'), make('dd', {}, `${proxy.version || ''}, ${proxy.config}${proxy.not_ready ? ', not ready: ' + proxy.not_ready : ''}, ${proxy.connections} connections`),
        make('dt', {}, 'Certificate'), make('dd', {}, proxy.serial ? `${proxy.serial}, good until ${proxy.not_after}` : 'unknown')] : [])));
  }
  const of = (end) => data.edges.filter((l) => peerKey(l[end]) === key);
  main.append(make('section', {}, ...edgeTable(of('destination'), 'Callers')), make('section', {}, ...edgeTable(of('source'), 'Calls')));
}

// ---- graph

const view = { x: 0, y: 0, scale: 0, places: new Map(), hover: null };

// place puts each namespace on a circle of its own, its workloads on a spiral from
// the centre, the busiest first: no iteration, the same for the same names.
function place(links) {
  const degree = new Map(), spaces = new Map();
  for (const l of links) for (const p of [l.source, l.destination]) {
    const key = peerKey(p);
    if (!degree.has(key)) {
      const space = p.namespace || '(outside)';
      if (!spaces.has(space)) spaces.set(space, []);
      spaces.get(space).push({ key, peer: p });
    }
    degree.set(key, (degree.get(key) || 0) + 1);
  }
  const groups = [...spaces.entries()].sort((a, b) => b[1].length - a[1].length || a[0].localeCompare(b[0]));
  const places = new Map(), circles = [];
  const GAP = 46;
  let ring = 0, angle = 0, reach = 0, next = 0;
  groups.forEach(([name, members], i) => {
    members.sort((a, b) => degree.get(b.key) - degree.get(a.key) || a.key.localeCompare(b.key));
    const radius = GAP * (0.8 + Math.sqrt(members.length));
    let cx = 0, cy = 0;
    if (i > 0) {
      if (next <= 0) { ring = reach + radius + GAP; angle = i * 0.7; next = 2 * Math.PI - 0.2; }
      const step = 2 * Math.asin(Math.min(1, (radius + GAP / 2) / ring));
      angle += step / 2;
      cx = ring * Math.cos(angle); cy = ring * Math.sin(angle);
      angle += step / 2; next -= step;
      if (next <= 0) reach = ring + radius;
      else if (i === groups.length - 1) reach = ring + radius;
    } else reach = radius;
    circles.push({ name, x: cx, y: cy, r: radius });
    members.forEach((m, j) => {
      const r = GAP * 0.85 * Math.sqrt(j + (members.length > 1 ? 0.6 : 0)), a = j * 2.399963;
      places.set(m.key, { x: cx + r * Math.cos(a), y: cy + r * Math.sin(a), peer: m.peer });
    });
  });
  // the box around all, so that it can be shown whole
  const low = (of) => Math.min(...circles.map((c) => of(c) - c.r)), high = (of) => Math.max(...circles.map((c) => of(c) + c.r));
  const box = circles.length ? { x: low((c) => c.x), y: low((c) => c.y), w: high((c) => c.x) - low((c) => c.x), h: high((c) => c.y) - low((c) => c.y) } : { x: -80, y: -80, w: 160, h: 160 };
  return { places, circles, box };
}

function drawGraph(main) {
  const { links } = wanted();
  const laid = place(links);
  const worst = links.filter((l) => WEAK.has(l.state)).length;
  const canvas = make('canvas', {
    tabindex: 0, role: 'img',
    'aria-label': `${laid.places.size} workloads and ${links.length} edges, ${worst} of them with plaintext. The view "Table" has the same as text. Arrow keys move, plus and minus zoom, 0 shows all.`,
  });
  main.append(canvas, make('ul', { class: 'legend' }, Object.entries(STATES).map(([state, name]) => {
    const line = make('i', {}); line.style.borderColor = `var(--${state})`;
    return make('li', {}, line, name);
  }), make('li', { id: 'over' }, 'Point at a workload, or select it to see it.')));
  const g = canvas.getContext('2d');
  const css = getComputedStyle(document.documentElement);
  const color = Object.fromEntries([...Object.keys(STATES), 'text', 'quiet', 'line', 'soft', 'back'].map((k) => [k, css.getPropertyValue('--' + k).trim()]));
  const paint = () => {
    const box = canvas.getBoundingClientRect(), dpr = window.devicePixelRatio || 1;
    if (!box.width) return;
    canvas.width = box.width * dpr; canvas.height = box.height * dpr;
    if (!view.scale) {
      const b = laid.box;
      view.scale = Math.min(box.width / (b.w * 1.05), box.height / (b.h * 1.05), 2);
      view.x = -(b.x + b.w / 2) * view.scale; view.y = -(b.y + b.h / 2) * view.scale;
    }
    g.setTransform(dpr * view.scale, 0, 0, dpr * view.scale, dpr * (box.width / 2 + view.x), dpr * (box.height / 2 + view.y));
    for (const c of laid.circles) {
      g.beginPath(); g.arc(c.x, c.y, c.r, 0, 7); g.fillStyle = color.soft; g.fill(); g.strokeStyle = color.line; g.lineWidth = 1 / view.scale; g.stroke();
    }
    for (const pass of ['mutual_tls', 'own_port', 'not_observed', 'foreign_tls', 'mixed', 'plaintext']) { // the worst on top
      g.strokeStyle = color[pass];
      for (const l of links) {
        if (l.state !== pass) continue;
        const a = laid.places.get(peerKey(l.source)), b = laid.places.get(peerKey(l.destination));
        const lit = !view.hover || view.hover === peerKey(l.source) || view.hover === peerKey(l.destination);
        g.globalAlpha = !lit ? 0.08 : view.hover || links.length < 800 ? 0.85 : WEAK.has(pass) ? 0.5 : 0.12; // what is many must not hide what is bad
        g.lineWidth = (1 + Math.log10(1 + volume(l)) / (links.length < 800 ? 2 : 6)) / Math.max(view.scale, 0.4);
        g.setLineDash(WEAK.has(pass) ? [6 / view.scale, 3 / view.scale] : []);
        g.beginPath();
        if (a === b) g.arc(a.x + 9, a.y - 9, 9, 0, 7);
        else {
          g.moveTo(a.x, a.y);
          const mx = (a.x + b.x) / 2 + (b.y - a.y) * 0.12, my = (a.y + b.y) / 2 - (b.x - a.x) * 0.12; // both directions are seen
          g.quadraticCurveTo(mx, my, b.x, b.y);
        }
        g.stroke();
      }
    }
    g.setLineDash([]); g.globalAlpha = 1; g.textAlign = 'center';
    const size = 11 / Math.max(view.scale, 0.5);
    for (const [key, n] of laid.places) {
      g.beginPath(); g.arc(n.x, n.y, 6, 0, 7);
      g.fillStyle = n.peer.kind === 'workload' ? color.text : color.back; g.fill();
      g.strokeStyle = color.text; g.lineWidth = 1.5; g.stroke();
      if (view.scale > 0.55 || laid.places.size < 60 || view.hover === key) {
        g.font = `${view.hover === key ? 'bold ' : ''}${size}px system-ui, sans-serif`; g.fillStyle = color.text; g.fillText(peerName(n.peer), n.x, n.y + 7 + size);
      }
    }
    g.font = `bold ${13 / view.scale}px system-ui, sans-serif`; g.fillStyle = color.quiet;
    for (const c of laid.circles) g.fillText(c.name, c.x, c.y - c.r + 16 / view.scale);
  };
  const at = (e) => {
    const box = canvas.getBoundingClientRect();
    const x = (e.clientX - box.left - box.width / 2 - view.x) / view.scale, y = (e.clientY - box.top - box.height / 2 - view.y) / view.scale;
    let best = null, far = 14 / Math.min(view.scale, 1);
    for (const [key, n] of laid.places) { const d = Math.hypot(n.x - x, n.y - y); if (d < far) { far = d; best = key; } }
    return best;
  };
  let drag = null;
  canvas.onpointerdown = (e) => { drag = { x: e.clientX, y: e.clientY, moved: false }; canvas.setPointerCapture(e.pointerId); };
  canvas.onpointermove = (e) => {
    if (drag) {
      drag.moved = drag.moved || Math.hypot(e.clientX - drag.x, e.clientY - drag.y) > 3;
      if (drag.moved) { view.x += e.clientX - drag.x; view.y += e.clientY - drag.y; drag.x = e.clientX; drag.y = e.clientY; paint(); }
      return;
    }
    const over = at(e);
    if (over !== view.hover) {
      view.hover = over; paint();
      const of = links.filter((l) => peerKey(l.source) === over || peerKey(l.destination) === over);
      el('over').textContent = over ? `${over.replace(/^\//, '')}: ${of.length} edges, ${of.filter((l) => WEAK.has(l.state)).length} with plaintext` : '';
    }
  };
  canvas.onpointerup = (e) => {
    const key = drag && !drag.moved ? at(e) : null;
    drag = null;
    const n = key && laid.places.get(key);
    if (n && n.peer.kind === 'workload') location.hash = 'workload/' + encodeURIComponent(key);
  };
  const zoom = (by) => { view.scale = Math.min(6, Math.max(0.02, view.scale * by)); paint(); };
  canvas.addEventListener('wheel', (e) => { e.preventDefault(); zoom(e.deltaY < 0 ? 1.15 : 1 / 1.15); }, { passive: false });
  canvas.onkeydown = (e) => {
    const move = { ArrowLeft: [40, 0], ArrowRight: [-40, 0], ArrowUp: [0, 40], ArrowDown: [0, -40] }[e.key];
    if (move) { view.x += move[0]; view.y += move[1]; paint(); } else if (e.key === '+' || e.key === '=') zoom(1.2); else if (e.key === '-') zoom(1 / 1.2);
    else if (e.key === '0') { view.scale = 0; paint(); } else return;
    e.preventDefault();
  };
  paint();
  window.onresize = paint;
  if (!laid.places.size) main.append(make('p', {}, 'No edges were seen.'));
}

// ---- the page

const VIEWS = { graph: drawGraph, table: drawTable, strict: drawStrict, certificates: drawCertificates, findings: drawFindings };

function here() {
  const [name, ...rest] = location.hash.slice(1).split('/');
  if (name === 'workload') return { name, key: decodeURIComponent(rest.join('/')) };
  return { name: VIEWS[name] ? name : 'graph' };
}

function summary() {
  const count = (state) => data.edges.filter((l) => l.state === state).length;
  const item = (n, text, kind) => make('li', {}, make('b', { class: n && kind ? kind : '' }, String(n)), ' ' + text);
  const mesh = data.pods.filter((p) => p.mesh).length;
  el('summary').replaceChildren(
    item(count('mutual_tls'), 'edges of mutual TLS', 'mutual_tls'), item(count('plaintext') + count('mixed'), 'with plaintext', 'plaintext'),
    item(mesh, 'pods in the mesh'), item(data.not_observed.length, 'pods not observed'),
    item(data.proxies.filter((p) => p.config !== 'SYNCED').length, 'proxies not in step', 'mixed'),
    ...(data.findings ? [item(data.findings.length, 'findings', 'mixed')] : []));
}

function draw(force) {
  const now = here();
  document.querySelectorAll('nav a').forEach((a) => {
    if (a.getAttribute('href') === '#' + now.name) a.setAttribute('aria-current', 'page'); else a.removeAttribute('aria-current');
  });
  if (!data) return;
  const { time, ...rest } = data;
  const from = JSON.stringify([now, el('namespace').value, el('find').value, el('weak').checked, order, rows, rest.edges.map((l) => [l.source, l.destination, l.port, l.state, connections(l)]), rest.proxies.length, rest.pods.length, rest.findings]);
  if (!force && from === drawn) return; // whoever reads is not disturbed
  drawn = from;
  summary();
  const main = el('main'), scroll = window.scrollY;
  const focused = document.activeElement && document.activeElement.tagName === 'CANVAS';
  main.replaceChildren();
  window.onresize = null;
  if (now.name === 'workload') drawWorkload(main, now.key); else VIEWS[now.name](main);
  if (focused && main.querySelector('canvas')) main.querySelector('canvas').focus();
  window.scrollTo(0, scroll);
  main.dataset.drawn = now.name;
}

function namespaces() {
  const select = el('namespace'), was = select.value;
  const all = new Set(data.pods.map((p) => p.namespace));
  for (const l of data.edges) for (const p of [l.source, l.destination]) if (p.namespace) all.add(p.namespace);
  const names = [...all].sort();
  if (names.length + 1 === select.options.length) return;
  select.replaceChildren(make('option', { value: '' }, 'all'), ...names.map((n) => make('option', { value: n }, n)));
  select.value = names.includes(was) ? was : '';
}

async function ask() {
  try {
    const answer = await fetch('data', { cache: 'no-store' });
    if (!answer.ok) throw new Error((await answer.text()).slice(0, 500) || answer.statusText);
    data = await answer.json();
    for (const l of data.edges) if (l.own_port) l.state = 'own_port'; // plaintext by design
    failed = '';
    namespaces();
    draw(false);
  } catch (e) {
    failed = e.message;
  }
  const state = el('state');
  state.classList.toggle('old', failed !== '');
  const text = failed ? `${data ? 'As of ' + new Date(data.time).toLocaleTimeString() + '; ' : ''}no answer: ${failed}` : `Live, ${data.replicas}`;
  if (state.textContent !== text) state.textContent = text;
  setTimeout(ask, EVERY);
}

window.addEventListener('hashchange', () => { rows = ROWS; order = { column: 'secured', down: false }; draw(true); el('main').focus(); });
window.matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => draw(true));
for (const id of ['namespace', 'find', 'weak']) el(id).addEventListener('input', () => { view.scale = 0; draw(false); });
el('filters').addEventListener('submit', (e) => e.preventDefault());
ask();
