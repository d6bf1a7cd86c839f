// The panels beside the charts. Text goes in as text, never as markup.
import type { Decision } from "./types";
import type { Opinion, Store } from "./store";
import { clock, fixed, percent, side, words } from "./format";

const SVG = "http://www.w3.org/2000/svg";
const MOST_ROWS = 60;

export function byId<T extends HTMLElement = HTMLElement>(id: string): T {
  const found = document.getElementById(id);
  if (!found) throw new Error(`the document has no element '${id}'`);
  return found as T;
}

export class Panels {
  private last: Decision | undefined;
  private count = -1;

  constructor(private readonly store: Store) {}

  draw(replaying: boolean, health: Record<string, unknown> | null): void {
    const last = this.store.decisions.at(-1);
    if (last !== this.last || this.store.decisions.length !== this.count) {
      this.last = last;
      this.count = this.store.decisions.length;
      this.votes(last);
      this.table();
    }
    this.regime(replaying);
    this.position(replaying);
    this.shadow(replaying);
    this.model(replaying, health);
    byId("candles-note").textContent = this.store.candles.length === 0 ? "Waiting for the first decision or bar."
      : this.store.hasBars ? "" : "Five-minute candles of the prices that decisions were asked at.";
  }

  private votes(d: Decision | undefined): void {
    if (!d) return byId("votes").replaceChildren(line("no decision yet"));
    const rows = Object.entries(d.votes).map(([agent, [short, pass, long]]) => row(agent,
      `${percent(short, 0)} short, ${percent(pass, 0)} pass, ${percent(long, 0)} long`,
      shares([["short", short], ["pass", pass], ["long", long]])));
    const confidence = row(`confidence: ${side(d.direction)}`, percent(d.confidence),
      shares([["confidence", d.confidence ?? 0], ["pass", 1 - (d.confidence ?? 0)]]));
    const doubt = Object.entries(d.uncertainty ?? {}).map(([name, value]) => `${words(name)} ${fixed(value, 3)}`);
    byId("votes").replaceChildren(...rows, confidence, line(doubt.join(", ")));
  }

  private table(): void {
    byId("decisions").replaceChildren(...this.store.decisions.slice(-MOST_ROWS).reverse().map((d) => {
      const cells = [clock(d.ts_ns), words(d.verdict), words(d.reason), side(d.direction), percent(d.confidence),
        fixed(d.price, 2), fixed(d.proposal?.contracts, 0), words(d.proposal?.limit ?? "none")];
      const tr = document.createElement("tr");
      tr.append(...cells.map((text, i) => {
        const td = document.createElement("td");
        td.textContent = text;
        if (i >= 4 && i <= 6) td.className = "num";
        if (i === 1 && d.verdict === "EXECUTE") td.className = d.direction < 0 ? "loss" : "gain";
        return td;
      }));
      return tr;
    }));
  }

  private regime(replaying: boolean): void {
    const { regime } = this.store;
    const box = byId("regime");
    if (regime === null) {
      box.replaceChildren(line(replaying ? "not in the recording" : "not known yet"));
    } else if (typeof regime === "string") {
      box.replaceChildren(line(words(regime)));
    } else {
      const values = Array.isArray(regime) ? regime : Object.values(regime);
      const names = Array.isArray(regime) ? values.map((_, i) => `${i + 1}`) : Object.keys(regime);
      box.replaceChildren(bars(names, values), line(`the regime vector, ${values.length} values`));
    }
  }

  private position(replaying: boolean): void {
    const { risk } = this.store;
    const price = this.store.candles.at(-1)?.close;
    if (!risk) {
      return list("position", [["state", replaying ? "none" : "not streamed: the caller holds the account"]]);
    }
    if (risk.position === 0) return list("position", [["state", "flat"]]);
    const points = price === undefined || risk.entry === null ? null : (price - risk.entry) * Math.sign(risk.position);
    list("position", [
      ["held", `${risk.position > 0 ? "long" : "short"} ${fixed(Math.abs(risk.position), 0)}`],
      ["entry", fixed(risk.entry, 2)], ["stop", fixed(risk.stop, 2)], ["target", fixed(risk.target, 2)],
      ["points", fixed(points, 2), points === null ? "" : points < 0 ? "loss" : "gain"],
    ]);
  }

  private shadow(replaying: boolean): void {
    const s = this.store.shadow;
    if (!s) return list("shadow", [["state", replaying ? "not in a replay" : "no shadow decides"]]);
    const rows: Row[] = [
      ["shadow", String(s["shadow"] ?? "–").slice(0, 12)], ["compared", fixed(s["compared"], 0)],
      ["same verdict", percent(s["verdict_agreement"])], ["same side", percent(s["direction_agreement"])],
      ["confidence differs by", fixed(s["confidence_difference"], 4)],
    ];
    const last = s["last"] as [Opinion, Opinion] | undefined;
    if (last) {
      rows.push(["champion's last", `${words(last[0].reason)}, ${percent(last[0].confidence)}`],
        ["shadow's last", `${words(last[1].reason)}, ${percent(last[1].confidence)}`]);
    }
    if (s["dropped"]) rows.push(["not compared", fixed(s["dropped"], 0)]);
    list("shadow", rows);
  }

  private model(replaying: boolean, health: Record<string, unknown> | null): void {
    const last = this.store.decisions.at(-1);
    if (replaying) return list("model", [["model", (last?.model ?? "–").slice(0, 12)]]);
    const m = this.store.model ?? {}, h = health ?? {}, l = this.store.latencySummary ?? {};
    const fallbacks = Array.isArray(h["fallbacks"]) ? h["fallbacks"].map(String) : [];
    const rows: Row[] = [
      ["champion", String(m["champion"] ?? h["model"] ?? last?.model ?? "–").slice(0, 12)],
      ["backend", String(m["backend"] ?? h["backend"] ?? "–")],
      ["threshold", fixed(h["threshold"], 3)],
      ["latency p50, p99", `${fixed(l["p50_ms"], 2)}, ${fixed(l["p99_ms"], 2)} ms`],
    ];
    if (m["previous"]) rows.push(["previous", String(m["previous"]).slice(0, 12)]);
    for (const text of fallbacks) rows.push(["fell back", text, "loss"]);
    list("model", rows);
  }
}

type Row = [name: string, value: string, kind?: string];

function list(id: string, rows: Row[]): void {
  const key = JSON.stringify(rows);
  const box = byId(id);
  if (box.dataset["shown"] === key) return; // nothing new for those who have it read to them
  box.dataset["shown"] = key;
  box.replaceChildren(...rows.flatMap(([name, value, kind]) => {
    const dt = document.createElement("dt"), dd = document.createElement("dd");
    dt.textContent = name;
    dd.textContent = value;
    if (kind) dd.className = kind;
    return [dt, dd];
  }));
}

function line(text: string): HTMLElement {
  const p = document.createElement("p");
  p.className = "muted";
  p.textContent = text;
  return p;
}

function row(name: string, value: string, picture: Element): HTMLElement {
  const box = document.createElement("div"), head = document.createElement("div");
  const left = document.createElement("span"), right = document.createElement("span");
  box.className = "vote";
  left.textContent = name;
  right.textContent = value;
  right.className = "muted";
  head.append(left, right);
  box.append(head, picture);
  return box;
}

/** Parts of a whole, side by side; the numbers stand beside it in words. */
function shares(parts: [kind: string, share: number][]): Element {
  const svg = picture("shares", "0 0 100 1");
  let at = 0;
  for (const [kind, share] of parts) {
    svg.append(rect(kind, at, 0, 100 * share, 1));
    at += 100 * share;
  }
  return svg;
}

function bars(names: string[], values: number[]): Element {
  const width = 100 / values.length, most = Math.max(1e-9, ...values.map(Math.abs));
  const svg = picture("regime", "0 0 100 64");
  svg.removeAttribute("aria-hidden");
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", values.map((v, i) => `${names[i]}: ${fixed(v, 2)}`).join(", "));
  const axis = document.createElementNS(SVG, "line");
  for (const [name, value] of [["x1", 0], ["x2", 100], ["y1", 32], ["y2", 32]] as const) {
    axis.setAttribute(name, String(value));
  }
  svg.append(axis, ...values.map((v, i) => {
    const height = (30 * Math.abs(v)) / most;
    return rect("confidence", i * width + width * 0.15, v < 0 ? 32 : 32 - height, width * 0.7, height);
  }));
  return svg;
}

function picture(kind: string, box: string): Element {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("class", kind);
  svg.setAttribute("viewBox", box);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("aria-hidden", "true");
  return svg;
}

function rect(kind: string, x: number, y: number, width: number, height: number): Element {
  const found = document.createElementNS(SVG, "rect");
  found.setAttribute("class", kind);
  const sizes = { x, y, width: Math.max(0, width), height: Math.max(0, height) };
  for (const [name, value] of Object.entries(sizes)) found.setAttribute(name, String(value));
  return found;
}

