// The dashboard's page: it shows what the stream says, and how old that is.
//
// What lives here: the connection to the stream, and how each thing looks. What must not: HTML made of text. Names, paths
// and reasons are others', so all of it becomes text nodes and attributes; the page's policy refuses anything else.
"use strict";

const KEPT_EVENTS = 100;
const SHOWN_HOLDERS = 8;
const RETRY_MS = 20000; // until a stream that is open and says nothing is made anew
const SVG = "http://www.w3.org/2000/svg";
const SVG_TAGS = new Set(["svg", "polyline", "polygon", "rect", "path"]);

/* ------------------------------------------------------------------ what is known */

const known = {
  view: null, // the newest view
  at: 0, // of this page's clock, when it came
  events: [], // the newest first; null where some are missing
  connection: "connecting", // or "live", "lost", "ended", "refused"
  since: performance.now(), // of this page's clock: since when that is so
};

// Seconds since the newest view came. This clock only runs forward, whatever the browser's time of day is set to.
const elapsed = () => (performance.now() - known.at) / 1000;
// The host's time of day, in seconds.
const now = () => known.view.now + elapsed();
const staleAfter = () => Math.max(8, 3 * known.view.interval);
const isStale = (age) => age === null || age + elapsed() > staleAfter();

/* ------------------------------------------------------------------ the document, changed where it differs */

function h(name, attributes, ...children) {
  const [tag, ...classes] = name.split(".");
  const wanted = { ...attributes };
  if (classes.length) wanted.class = classes.join(" ") + (wanted.class ? " " + wanted.class : "");
  return { tag, key: wanted.key, attributes: wanted, children: children.flat(Infinity).filter((each) => each !== null && each !== undefined && each !== false && each !== "") };
}

function made(wanted) {
  if (typeof wanted !== "object") return document.createTextNode(String(wanted));
  const node = SVG_TAGS.has(wanted.tag) ? document.createElementNS(SVG, wanted.tag) : document.createElement(wanted.tag);
  node.known = { key: wanted.key, attributes: {} };
  return node;
}

function fits(node, wanted) {
  if (typeof wanted !== "object") return node.nodeType === Node.TEXT_NODE;
  return node.known !== undefined && node.localName === wanted.tag && node.known.key === wanted.key;
}

function set(node, wanted) {
  const before = node.known.attributes;
  for (const [name, value] of Object.entries(wanted)) {
    if (name === "key" || before[name] === value) continue;
    if (name.startsWith("--")) node.style.setProperty(name, value);
    else if (value === null || value === undefined || value === false) node.removeAttribute(name);
    else node.setAttribute(name, value === true ? "" : value);
  }
  for (const name of Object.keys(before)) if (!(name in wanted)) name.startsWith("--") ? node.style.removeProperty(name) : node.removeAttribute(name);
  node.known.attributes = wanted;
}

// Make the children of `parent` what is wanted, and leave alone what is so already: focus and selections stay.
function patch(parent, wanted) {
  const keyed = new Map();
  for (const node of parent.childNodes) if (node.known?.key !== undefined) keyed.set(node.known.key, node);
  wanted.forEach((each, at) => {
    const here = parent.childNodes[at];
    let node = typeof each === "object" && each.key !== undefined ? keyed.get(each.key) : here;
    if (!node || !fits(node, each)) node = made(each);
    if (node !== here) parent.insertBefore(node, here ?? null);
    if (typeof each !== "object") {
      if (node.data !== String(each)) node.data = String(each);
    } else {
      set(node, each.attributes);
      patch(node, each.children);
    }
  });
  while (parent.childNodes.length > wanted.length) parent.lastChild.remove();
}

const put = (id, ...children) => patch(document.getElementById(id), h("x", {}, ...children).children);

/* ------------------------------------------------------------------ words */

function duration(seconds) {
  const whole = Math.max(0, Math.floor(seconds));
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${String(whole % 60).padStart(2, "0")} s`;
  if (whole < 86400) return `${Math.floor(whole / 3600)} h ${String(Math.floor((whole % 3600) / 60)).padStart(2, "0")} min`;
  return `${Math.floor(whole / 86400)} d ${Math.floor((whole % 86400) / 3600)} h`;
}

const rough = (seconds) => duration(seconds).split(" ").slice(0, 2).join(" ");

function number(value) {
  if (value < 10 && value % 1) return value.toFixed(1);
  return Math.round(value).toLocaleString("en").replaceAll(",", " ");
}

function bytes(count) {
  for (const unit of ["B", "kB", "MB", "GB"]) {
    if (count < 1000) return `${unit === "B" || count >= 100 ? Math.round(count) : count.toFixed(1)} ${unit}`;
    count /= 1000;
  }
  return `${number(count)} TB`;
}

const many = (count, one, more = one + "s") => `${number(count)} ${count === 1 ? one : more}`;

function clock(seconds) {
  const date = new Date(seconds * 1000);
  return Number.isNaN(date.getTime()) ? "?" : date.toLocaleTimeString("en-GB");
}

const seconds = (text) => Date.parse(text) / 1000;

// A time that is counted from, as text for all and as a date for those who point at it.
const ago = (since) => h("time", { datetime: new Date(since * 1000).toISOString(), title: new Date(since * 1000).toLocaleString("en-GB") }, rough(now() - since));

/* ------------------------------------------------------------------ parts */

const badge = (kind, text, attributes = {}) => h(`span.badge.${kind}`, attributes, text);

function age(of) {
  return of === null ? badge("old", "no answer yet") : badge("old", `as of ${duration(of + elapsed())} ago`);
}

const parted = (series) => {
  const runs = [];
  series.forEach((value, at) => {
    if (value === null) return;
    if (at === 0 || series[at - 1] === null || !runs.length) runs.push([]);
    runs.at(-1).push([at, value]);
  });
  return runs;
};

// Operations as a line over its area, errors as bars: each against its own highest.
function spark(series, wide = false) {
  const ticks = 60, width = 120, height = 28;
  const operations = series?.operations ?? [], errors = series?.errors ?? [];
  const from = ticks - operations.length;
  const most = Math.max(1, ...operations), worst = Math.max(1, ...errors);
  const x = (at) => (((from + at) / (ticks - 1)) * width).toFixed(1);
  const y = (value) => (height - 1 - (value / most) * (height - 4)).toFixed(1);
  const failing = errors.some((value) => value > 0);
  const last = operations.at(-1), lastError = errors.at(-1);
  const words = !operations.length || operations.every((value) => value === null)
    ? "No operations were counted yet."
    : `Operations a second: ${last === null ? "not known" : number(last)} now, ${number(most === 1 ? Math.max(0, ...operations) : most)} at most. `
      + `Errors a second: ${lastError === null ? "not known" : number(lastError)} now, ${number(Math.max(0, ...errors))} at most.`;
  return h(wide ? "svg.spark.wide" : "svg.spark", { viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", role: "img", "aria-label": words },
    h("path.base", { d: `M0 ${height - 0.5}H${width}` }),
    parted(operations).map((run) => [
      h("polygon.area", { points: [`${x(run[0][0])},${height}`, ...run.map(([at, value]) => `${x(at)},${y(value)}`), `${x(run.at(-1)[0])},${height}`].join(" ") }),
      h("polyline.line", { points: (run.length === 1 ? [run[0], run[0]] : run).map(([at, value]) => `${x(at)},${y(value)}`).join(" ") }),
    ]),
    failing && errors.map((value, at) => value > 0 && h("rect.errors", {
      x: (x(at) - 0.7).toFixed(1), width: "1.6", y: (height - Math.max(3, (value / worst) * height * 0.4)).toFixed(1), height: Math.max(3, (value / worst) * height * 0.4).toFixed(1),
    })),
  );
}

function rates(rate) {
  if (!rate) return h("span.rate.none", {}, "–");
  return [
    h("span.rate", {}, h("b", {}, number(rate.operations)), " op/s"),
    rate.errors > 0 && h("span.rate.bad", {}, h("b", {}, number(rate.errors)), " errors/s"),
  ];
}

// What is left of a lease, by the host's clock: from the time of the daemon's answer on.
const left = (reference, of) => reference.expires_in - (of ?? 0) - elapsed();

function holder(reference, of, stale) {
  const you = known.view.daemon.info?.you;
  const who = [reference.uid !== you && h("span.uid", {}, `uid ${reference.uid}/`), h("b", {}, reference.owner)];
  const key = `${reference.uid}/${reference.owner}`;
  if (reference.lease === null) return h("li.holder", { key, title: "holds it until it is released" }, who);
  const rest = left(reference, of);
  const share = Math.min(1, Math.max(0, rest / reference.lease));
  const soon = !stale && rest < Math.min(10, reference.lease / 3);
  return h("li.holder.leased", { key, class: soon ? "soon" : null, title: `a lease of ${duration(reference.lease)}`, "--left": `${(share * 100).toFixed(1)}%` },
    who, h("span.left", {}, rest > 0 ? duration(Math.ceil(rest)) : "over"));
}

function holders(item, of, mounted = []) {
  const stale = isStale(of);
  const list = [
    ...item.references.map((each) => holder(each, of, stale)),
    ...mounted.map((path) => h("li.holder.mount", { key: `mount ${path}`, title: "the mount at this path of the guest holds it" }, h("span.uid", {}, "mount "), h("b", {}, path))),
  ];
  if (!list.length) return h("span.none", {}, "nobody");
  return h("ul.holders", {}, list.slice(0, SHOWN_HOLDERS), list.length > SHOWN_HOLDERS && h("li.more", { key: "more" }, `and ${number(list.length - SHOWN_HOLDERS)} more`));
}

const DIRECTORY = {
  replaced: ["warn", "directory was replaced", "the path leads to another directory now; the guest has the one that was shared"],
  gone: ["bad", "directory is gone", "nothing is at the path any more"],
  unknown: ["quiet", "directory unknown", "nobody can tell what is at the path, or its file system does not answer"],
};

function options(item) {
  const directory = DIRECTORY[item.directory];
  return [
    badge(item.read_only ? "quiet" : "rw", item.read_only ? "ro" : "rw", { title: item.read_only ? "read-only" : "the guest may write" }),
    item.only.length > 0 && badge("quiet", `only ${item.only.join(", ")}`),
    item.hide.length > 0 && badge("quiet", `hides ${item.hide.join(", ")}`),
    item.map_owner && badge("quiet", `owner ${item.map_owner}`),
    directory && badge(directory[0], directory[1], { title: directory[2] }),
  ];
}

const GOOD = new Set(["added", "in vm", "mounted", "running", "shared", "reached", "connected", "there"]);
const BAD = new Set(["failed", "gone", "invalid", "revoked", "unreachable"]);
const kindOf = (state) => (GOOD.has(state) ? "good" : BAD.has(state) ? "bad" : "warn");
const column = (name) => ({ "data-column": name });

function trouble(item) {
  return [
    item.busy && badge("warn", item.busy),
    item.orphan && badge("warn", "orphan", { title: "nobody knows whether the VM has it, because an answer was lost; it is removed again" }),
    item.last_error && h("p.error", {}, item.last_error),
  ];
}

function shareRow(share, part, vm) {
  const counted = share.counted;
  return h("tr", { key: share.name },
    h("th", { scope: "row", ...column("share") }, share.name),
    h("td.path", column("path"), h("bdi", {}, share.path), " ", options(share)),
    h("td", column("state"), badge(kindOf(share.state), share.state), " ", trouble(share)),
    h("td", column("held by"), holders(share, part.age, share.mounts)),
    h("td.activity", { ...column("activity"), class: isStale(vm.counters_age) ? "stale" : null }, spark(share.series), h("div.rates", {}, rates(share.rate)),
      counted && h("div.sums", {}, many(counted.operations, "op"), counted.errors > 0 && h("span.bad", {}, ` · ${many(counted.errors, "error")}`),
        ` · ${bytes(counted.received)} in · ${bytes(counted.sent)} out`)),
  );
}

function mountRow(mount, part) {
  const away = mount.unreachable_since;
  return h("tr", { key: mount.guest_path },
    h("th.path", { scope: "row", ...column("in the guest") }, h("bdi", {}, mount.guest_path),
      h("p.sums", {}, mount.chosen ?? (mount.cache === "auto" ? "" : `cache=${mount.cache}`),
        mount.events && (mount.no_events ? ` · no events: ${mount.no_events}` : " · events"))),
    h("td.path", column("of"), h("bdi", {}, mount.path), " ", options(mount)),
    h("td", column("state"), away ? [badge("bad", "unreachable"), h("span.quiet", {}, " since ", ago(seconds(away)), `; was ${mount.state}`)] : badge(kindOf(mount.state), mount.state), " ", trouble(mount)),
    h("td", column("held by"), holders(mount, part.age)),
  );
}

function table(caption, columns, part, rows) {
  const stale = isStale(part.age);
  const missing = part.total - part.items.length;
  return h("div.part", {},
    h("table", { class: stale ? "stale" : null },
      h("caption", {}, caption),
      h("thead", {}, h("tr", {}, columns.map((name) => h("th", { scope: "col", class: `of-${{ "in the guest": "guest", of: "path", "held by": "holders" }[name] ?? name}` }, name)))),
      h("tbody", {}, rows)),
    stale && h("p.aged", {}, age(part.age), part.error && h("span.error", {}, " ", part.error)),
    missing > 0 && h("p.quiet", {}, `and ${number(missing)} more`));
}

const command = (...words) => h("code.command", { tabindex: "0" }, words.join(" "));

function agent(vm) {
  if (vm.agent === null) return badge("quiet", "no agent", { title: "the host cannot mount in this guest: uvmshare vm add --agent" });
  const since = vm.agent_since ? [" ", ago(seconds(vm.agent_since))] : null;
  const state = vm.agent_state ?? "unknown";
  return badge(kindOf(state), [state === "unknown" ? "agent not known yet" : `agent ${state}`, since], { title: vm.agent });
}

const STATE = {
  finding: "The daemon was started again and looks for this VM's file server.",
  gone: "The VM's file server was ended. Remove the VM, and add it again: ",
};

function vmCard(of) {
  const vm = of.vm;
  const stale = isStale(known.view.age) || !isLive();
  const at = `vm-${vm.id}`;
  const most = vm.cgroup_limits["memory.max"];
  const memory = vm.use?.memory === null || vm.use === null ? null : `${bytes(vm.use.memory)}${most && most !== "max" ? ` of ${bytes(Number(most))}` : ""} memory`;
  const facts = [
    ...(vm.addresses.length ? vm.addresses : vm.listen),
    vm.compute_system && `compute system ${vm.compute_system}`,
    memory,
    vm.restarts > 0 && `file server started again ${vm.restarts === 1 ? "once" : `${number(vm.restarts)} times`}`,
  ].filter(Boolean);
  const empty = of.shares.age !== null && of.shares.total === 0;
  return h("article.vm", { key: vm.id, class: stale ? "stale" : null, "aria-labelledby": at },
    h("header", {},
      h("h2", { id: at }, h("bdi", {}, vm.id)),
      badge(kindOf(vm.state), vm.state), agent(vm), vm.read_only && badge("quiet", "read-only"),
      h("div.now", { class: isStale(of.counters_age) ? "stale" : null }, h("div.rates", {}, rates(of.rate), of.rate && h("span.rate", {}, h("b", {}, bytes(of.rate.received)), "/s in"), of.rate && h("span.rate", {}, h("b", {}, bytes(of.rate.sent)), "/s out")), spark(of.series, true))),
    h("ul.facts", {}, facts.map((each) => h("li", {}, h("bdi", {}, each)))),
    STATE[vm.state] && h("p.notice", {}, STATE[vm.state], vm.state === "gone" && command("uvmshare vm rm", vm.id)),
    vm.error && h("p.error", {}, vm.error),
    vm.agent_error && vm.agent_state === "unreachable" && h("p.error", {}, "agent at ", h("bdi", {}, vm.agent), `: ${vm.agent_error}`),
    (vm.notes ?? []).map((each) => h("p.notice", {}, each)),
    isStale(of.counters_age) && of.counters_error && of.shares.total > 0 && h("p.aged", {}, "Counters: ", age(of.counters_age), " ", h("span.error", {}, of.counters_error)),
    vm.state === "finding" ? null
      : of.shares.age === null ? h("p.quiet", {}, of.shares.error ?? "Asking for its shares …")
      : empty ? h("p.empty", {}, "Nothing is shared with this VM. ", command("uvmshare share add", vm.id, "~/project:ro"))
      : table("Shares", ["share", "path", "state", "held by", "activity"], of.shares, of.shares.items.map((share) => shareRow(share, of.shares, of))),
    of.mounts.total > 0 && table("Mounts in the guest", ["in the guest", "of", "state", "held by"], of.mounts, of.mounts.items.map((mount) => mountRow(mount, of.mounts))),
    vm.agent !== null && of.mounts.age !== null && of.mounts.total === 0 && vm.state === "running" && h("p.empty", {}, "Nothing is mounted by its agent. ", command("uvmshare map", vm.id, "~/project:ro", "/mnt/project")),
  );
}

const WORST = /(failed|lost|gone|overdue|refused)$/, DOUBTFUL = /(ended|missed|restarting|removed|released)$/, BEST = /(added|held|found|reached|remounted|mounted|mapped)$/;
const kindOfEvent = (kind) => (WORST.test(kind) ? "bad" : BEST.test(kind) ? "good" : DOUBTFUL.test(kind) ? "warn" : "plain");
const plain = (value) => (typeof value === "string" ? value : JSON.stringify(value));

function eventRow(event, at) {
  if (event === null) return h("li.missed", { key: `missed ${at}` }, "Some events between these are not kept, or were before the daemon was started again.");
  const details = Object.entries(event.detail).filter(([, value]) => value !== null && value !== "");
  return h("li", { key: event.id, class: ["gone", "replaced"].includes(event.detail.directory) ? "warn" : kindOfEvent(event.kind) },
    h("time", { datetime: event.time, title: new Date(event.time).toLocaleString("en-GB") }, clock(seconds(event.time))),
    h("div", {}, h("b", {}, event.kind), " ", h("bdi", {}, event.vm),
      event.share !== null && [" share ", event.share], event.owner !== null && [" ", h("b.owner", {}, event.owner)],
      details.length > 0 && h("p.details", {}, details.map(([name, value]) => h("span", {}, `${name}=`, h("bdi", {}, plain(value)))))));
}

/* ------------------------------------------------------------------ the page */

const isLive = () => known.connection === "live" && known.view?.daemon.reached;

function banner() {
  const view = known.view;
  const away = (performance.now() - known.since) / 1000;
  if (known.connection === "ended") return ["The command was ended.", ["Start it again for a new page: ", command("uvmshare dashboard")]];
  if (known.connection === "refused") return ["This page is not let in any more.", ["The command was started again, or another page has its place. Open the link that it prints: ", command("uvmshare dashboard")]];
  if (known.connection === "lost") return [`The command has not answered since ${clock((view ? now() : Date.now() / 1000) - away)}.`, [h("span", { "aria-hidden": "true" }, `(${duration(away)}) `), "It was ended, or the way to its host is cut. The page goes on by itself when it answers. ", command("uvmshare dashboard")]];
  if (view && !view.daemon.reached) {
    return [`The daemon has not been reached since ${clock(view.daemon.since)}.`, [h("span", { "aria-hidden": "true" }, `(${duration(now() - view.daemon.since)}) `), view.daemon.error, ". The page goes on by itself when the daemon answers. What is shown below is what it said last."]];
  }
  return null;
}

function showTop() {
  const view = known.view;
  const words = { connecting: ["warn", "connecting …"], lost: ["bad", "not connected"], ended: ["bad", "ended"], refused: ["bad", "not let in"] }[known.connection];
  const stale = view && isStale(view.age);
  const [kind, text] = words ?? (!view ? ["warn", "connecting …"] : !view.daemon.reached ? ["bad", "daemon not reached"] : stale ? ["warn", "daemon does not answer"] : ["good", "live"]);
  put("link", badge(kind, text), view && (stale || !isLive()) && view.age !== null && age(view.age));
  const told = banner();
  put("banner", told && h("div.banner", { role: "alert" }, h("b", {}, told[0]), " ", h("span", {}, told[1])));
  document.title = !view || words ? "uvmshare" : kind === "good" ? `${many(view.vms.length, "VM")} · uvmshare` : `! ${text} · uvmshare`;
  if (!view) return;
  const info = view.daemon.info;
  put("who", h("bdi", {}, view.user), info && info.you !== 0 ? " sees their own VMs on " : " sees all VMs on ", h("bdi", {}, view.host));
  put("foot", info ? [`uvmshare ${info.version}, daemon ${info.pid} at `, h("bdi", {}, view.daemon.path), view.daemon.reached && [", up ", ago(seconds(info.started))], `, asked every ${number(view.interval)} s. This page changes nothing.`,
    info.notes.length > 0 && h("details", {}, h("summary", {}, `${many(info.notes.length, "note")} about this host`), h("ul", {}, info.notes.map((note) => h("li", {}, note))))] : "This page changes nothing.");
}

function soonest() {
  let first = Infinity;
  for (const of of known.view.vms) for (const part of [of.shares, of.mounts]) for (const item of part.items) for (const each of item.references) {
    if (each.lease !== null) first = Math.min(first, left(each, part.age));
  }
  return first;
}

function total(name, value, more, ...rest) {
  return h("div.total", { key: name }, h("span.name", {}, name), h("b", {}, value), h("span.more", {}, more), rest);
}

function showTotals() {
  const { totals, vms } = known.view;
  const running = vms.filter((each) => each.vm.state === "running").length;
  const away = vms.filter((each) => each.vm.agent_state === "unreachable").length;
  const next = soonest();
  const stale = isStale(known.view.age) || !isLive();
  put("totals", h("div.strip", { class: stale ? "stale" : null },
    total("VMs", number(totals.vms), [running < vms.length ? `${number(running)} running` : totals.vms ? "all running" : "", away > 0 && h("span.bad", {}, `${running < vms.length ? ", " : " · "}${many(away, "agent")} away`)]),
    total("shares", number(totals.shares), totals.mounts ? many(totals.mounts, "mount") : "no mounts"),
    total("leases", number(totals.leases), Number.isFinite(next) ? (next > 0 ? `next ends in ${duration(Math.ceil(next))}` : "one is over") : "none"),
    total("operations", totals.rate ? number(totals.rate.operations) : "–", "a second", spark(totals.series, true)),
    total("errors", totals.rate ? h("span", { class: totals.rate.errors > 0 ? "bad" : null }, number(totals.rate.errors)) : "–", "a second"),
    total("bytes", totals.rate ? bytes(totals.rate.received + totals.rate.sent) : "–", totals.rate ? `a second: ${bytes(totals.rate.received)} in, ${bytes(totals.rate.sent)} out` : "a second")));
}

function showVms() {
  const view = known.view;
  if (view.age === null) put("vms", h("p.empty", {}, "The daemon has not listed its VMs yet."));
  else if (!view.vms.length) {
    put("vms", h("div.empty.first", {}, h("h2", {}, "No VMs yet"), h("p", {}, "Tell the daemon where a VM's guest connects, and share a directory with it:"),
      command("uvmshare vm add build firecracker:/run/fc/v.sock"), command("uvmshare share add build ~/project:ro"),
      h("p.quiet", {}, "They appear here at once.")));
  } else {
    const missing = view.totals.vms - view.vms.length;
    put("vms", view.vms.map(vmCard), missing > 0 && h("p.quiet", {}, `and ${many(missing, "more VM")}: `, command("uvmshare vm ls")));
  }
}

function showEvents() {
  put("log", known.events.length ? h("ol", {}, known.events.map((event, at) => eventRow(event, known.events.length - at))) : h("p.empty", {}, "Nothing has happened since the daemon was started. What happens appears here."));
}

function show() {
  showTop();
  if (known.view === null) return;
  showTotals();
  showVms();
}

/* ------------------------------------------------------------------ the stream */

let stream = null;

function become(connection) {
  if (known.connection === connection) return;
  known.connection = connection;
  known.since = performance.now();
  show();
}

function connect() {
  stream?.close();
  stream = new EventSource("/stream");
  let first = true;
  stream.addEventListener("open", () => { first = true; });
  stream.addEventListener("view", (message) => {
    known.view = JSON.parse(message.data);
    known.at = performance.now();
    become("live");
    show();
  });
  stream.addEventListener("happened", (message) => {
    const events = JSON.parse(message.data).reverse();
    known.events = (first ? events : [...events, ...known.events]).slice(0, KEPT_EVENTS);
    first = false;
    showEvents();
  });
  stream.addEventListener("end", () => { stream.close(); become("ended"); });
  // It connects again by itself, unless it was refused.
  stream.addEventListener("error", () => become(stream.readyState === EventSource.CLOSED ? "refused" : "lost"));
}

// A browser has few connections to one host: a page that nobody sees gives its own back.
document.addEventListener("visibilitychange", () => {
  if (["ended", "refused"].includes(known.connection)) return;
  if (document.hidden) {
    stream.close();
    become("connecting");
  } else connect();
});

setInterval(() => {
  if (document.hidden) return;
  // A stream that was cut on its way says nothing of it.
  if (known.connection === "live" && elapsed() > staleAfter()) become("lost");
  if (known.connection === "lost" && stream.readyState === EventSource.OPEN && performance.now() - known.since > RETRY_MS) connect();
  show();
}, 1000);

showEvents();
show();
connect();
