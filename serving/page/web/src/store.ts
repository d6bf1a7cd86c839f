// What the page knows: a fold over messages, the same for the live stream and for a replayed recording.
import type { Bar, Decision, Fill, KillSwitch, Performance, Risk, StreamState } from "./types";

const MOST_DECISIONS = 5000;
const MOST_POINTS = 100_000;
const BUCKET_S = 300;

export interface Candle {
  time: number; // seconds UTC
  open: number;
  high: number;
  low: number;
  close: number;
}

/** A resting level over time; null where there is none. */
export interface Level {
  time: number;
  stop: number | null;
  target: number | null;
}

export interface Opinion {
  model: string;
  verdict: string;
  reason: string;
  direction: number;
  confidence: number;
}

export class Store {
  candles: Candle[] = [];
  decisions: Decision[] = [];
  fills: Fill[] = [];
  levels: Level[] = [];
  equity: Performance[] = [];
  latency: { ts_ns: number; ms: number }[] = [];
  risk: Risk | null = null;
  model: Record<string, unknown> | null = null;
  shadow: Record<string, unknown> | null = null;
  latencySummary: Record<string, unknown> | null = null;
  regime: Decision["regime"] = null;
  kill: KillSwitch | null = null;
  /** Grows with every change that is not an addition at the end; charts are then drawn anew. */
  redraws = 0;
  /** Whether candles come from bars; otherwise they gather the prices of decisions. */
  hasBars = false;
  private streamId = "";
  private readonly known = new Set<string>();

  clear(): void {
    this.candles = [];
    this.decisions = [];
    this.fills = [];
    this.levels = [];
    this.equity = [];
    this.latency = [];
    this.risk = this.shadow = this.model = this.latencySummary = null;
    this.regime = null;
    this.kill = null;
    this.streamId = "";
    this.hasBars = false;
    this.known.clear();
    this.redraws++;
  }

  /** A snapshot: what is known already stays, decisions that were missed are put in their places. */
  snapshot(state: StreamState, stream: string): void {
    const missed = (state.decisions ?? []).filter((d) => !this.known.has(keyOf(d)));
    for (const decision of missed) this.known.add(keyOf(decision));
    this.decisions = [...this.decisions, ...missed].sort((a, b) => a.ts_ns - b.ts_ns);
    this.latency = this.decisions.filter((d) => d.latency_ms !== null)
      .map((d) => ({ ts_ns: d.ts_ns, ms: d.latency_ms as number }));
    if (!this.hasBars) {
      this.candles = [];
      for (const decision of this.decisions) this.gather(decision);
    }
    this.model = state.model ?? this.model;
    this.shadow = state.shadow ?? this.shadow;
    this.latencySummary = state.latency ?? this.latencySummary;
    this.regime = state.regime ?? this.regime;
    const kill = state.kill ?? null; // revisions of another stream may be of another service
    this.kill = stream === this.streamId ? further(this.kill, kill) : kill;
    this.streamId = stream;
    this.redraws++;
  }

  delta(topic: string, data: Record<string, unknown>): void {
    const value: unknown = data;
    if (topic === "decision") this.decided(value as Decision);
    else if (topic === "market") this.bar(value as Bar);
    else if (topic === "trade") this.fills.push(value as Fill);
    else if (topic === "risk") this.held(value as Risk);
    else if (topic === "performance") append(this.equity, value as Performance);
    else if (topic === "model") this.switched(data);
    else if (topic === "shadow") this.compared(data);
    else if (topic === "latency") this.latencySummary = data;
    else if (topic === "kill") this.kill = further(this.kill, value as KillSwitch);
  }

  private decided(decision: Decision): void {
    const key = keyOf(decision);
    if (this.known.has(key)) return;
    this.known.add(key);
    const last = this.decisions.at(-1);
    this.decisions.push(decision);
    if (last && decision.ts_ns < last.ts_ns) { // replicas' clocks differ a little
      this.decisions.sort((a, b) => a.ts_ns - b.ts_ns);
      this.redraws++;
    }
    if (this.decisions.length > MOST_DECISIONS) {
      for (const gone of this.decisions.splice(0, MOST_DECISIONS / 10)) this.known.delete(keyOf(gone));
    }
    if (decision.latency_ms !== null) append(this.latency, { ts_ns: decision.ts_ns, ms: decision.latency_ms });
    if (decision.regime !== null) this.regime = decision.regime;
    if (!this.hasBars) this.gather(decision);
  }

  private bar(bar: Bar): void {
    if (!this.hasBars) {
      this.hasBars = true;
      this.candles = [];
      this.redraws++;
    }
    this.put({ time: seconds(bar.ts_ns), open: bar.open, high: bar.high, low: bar.low, close: bar.close });
  }

  private switched(model: Record<string, unknown>): void {
    const before = this.model;
    this.model = model;
    if (before && (before["champion"] !== model["champion"] || before["shadow"] !== model["shadow"])) {
      this.shadow = null; // the record is of one pair of models
    }
  }

  private held(risk: Risk): void {
    this.risk = risk;
    const open = risk.position !== 0;
    append(this.levels, { time: seconds(risk.ts_ns), stop: open ? risk.stop : null,
      target: open ? risk.target : null });
  }

  /** One more comparison (or some that were dropped), added to the figures of the snapshot. */
  private compared(data: Record<string, unknown>): void {
    const before = this.shadow ?? {};
    if (typeof data["dropped"] === "number") {
      this.shadow = { ...before, dropped: number(before["dropped"]) + data["dropped"] };
      return;
    }
    const mine = data["champion"] as Opinion, theirs = data["shadow"] as Opinion;
    const n = number(before["compared"]);
    const mean = (name: string, value: number): number => (number(before[name]) * n + value) / (n + 1);
    this.shadow = {
      ...before, champion: mine.model, shadow: theirs.model, compared: n + 1, last: [mine, theirs],
      verdict_agreement: mean("verdict_agreement", Number(mine.verdict === theirs.verdict)),
      direction_agreement: mean("direction_agreement", Number(mine.direction === theirs.direction)),
      confidence_difference: mean("confidence_difference", Math.abs(mine.confidence - theirs.confidence)),
    };
  }

  /** A decision's price as part of a five-minute candle of the prices that the service was asked at. */
  private gather(decision: Decision): void {
    if (!Number.isFinite(decision.price)) return;
    const time = Math.floor(seconds(decision.ts_ns) / BUCKET_S) * BUCKET_S;
    const last = this.candles.at(-1);
    const price = decision.price;
    if (last && time === last.time) {
      last.high = Math.max(last.high, price);
      last.low = Math.min(last.low, price);
      last.close = price;
    } else if (!last || time > last.time) {
      this.put({ time, open: price, high: price, low: price, close: price });
    }
  }

  private put(candle: Candle): void {
    const last = this.candles.at(-1);
    if (!last || candle.time > last.time) {
      append(this.candles, candle);
    } else if (candle.time === last.time) {
      this.candles[this.candles.length - 1] = candle;
    } else {
      const at = this.candles.findIndex((c) => c.time >= candle.time);
      const same = this.candles[at]?.time === candle.time;
      this.candles.splice(at, same ? 1 : 0, candle);
      this.redraws++;
    }
  }
}

export function seconds(ts_ns: number): number {
  return Math.floor(ts_ns / 1e9);
}

/** Which of two states of the kill switch counts, whichever was told last: the later change, and in doubt thrown. */
function further(one: KillSwitch | null, other: KillSwitch | null): KillSwitch | null {
  if (!one || !other) return one ?? other;
  const ahead = other.revision - one.revision || Number(other.thrown) - Number(one.thrown);
  return ahead > 0 ? other : one;
}

function number(value: unknown): number {
  return typeof value === "number" ? value : 0;
}

function keyOf(decision: Decision): string {
  return `${decision.trace_id}@${decision.ts_ns}`;
}

function append<T>(list: T[], item: T): void {
  list.push(item);
  if (list.length > MOST_POINTS) list.splice(0, MOST_POINTS / 10);
}
