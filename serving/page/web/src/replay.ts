// A recorded backtest, played: bars, decisions and fills become the same messages that the live stream sends.
import type { Access } from "./access";
import type { Store } from "./store";

const PAGE = 5000;

export interface Recording {
  name: string;
  title: string;
  instrument: string;
  model: string;
  bars: number;
}

interface Columns {
  ts_ns: number[];
  open: number[];
  high: number[];
  low: number[];
  close: number[];
  equity: number[];
  position: number[];
  entry: (number | null)[];
  stop: (number | null)[];
  target: (number | null)[];
}

interface Timed extends Record<string, unknown> {
  ts_ns: number;
}

interface Answer {
  start: number;
  bars: Columns;
  decisions: Timed[];
  fills: Timed[];
}

export class Player {
  place = 0; // bars that have been shown
  playing = false;
  speed = 20;
  private bars: Columns | null = null;
  private decisions: Timed[] = [];
  private fills: Timed[] = [];
  private nextDecision = 0;
  private nextFill = 0;
  private owed = 0;
  private before = 0;
  private frame = 0;
  private ended = false;

  constructor(
    readonly recording: Recording,
    private readonly store: Store,
    private readonly shown: () => void,
  ) {}

  get loaded(): number {
    return this.bars?.ts_ns.length ?? 0;
  }

  /** Fetch the recording page by page; it can be played from the first page on. */
  async load(access: Access, progress: () => void): Promise<void> {
    while (!this.ended && this.loaded < this.recording.bars) {
      const path = `/v1/replay?name=${encodeURIComponent(this.recording.name)}&start=${this.loaded}&count=${PAGE}`;
      const answer = (await access.get(path)) as unknown as Answer;
      if (answer.bars.ts_ns.length === 0) throw new Error("the recording is shorter than it says");
      if (this.bars === null) this.bars = answer.bars;
      else {
        const mine = this.bars as unknown as Record<string, unknown[]>;
        for (const [name, values] of Object.entries(answer.bars)) mine[name]?.push(...(values as unknown[]));
      }
      this.decisions.push(...answer.decisions);
      this.fills.push(...answer.fills);
      progress();
    }
  }

  play(on: boolean): void {
    this.playing = on;
    this.owed = 0;
    this.before = performance.now();
    cancelAnimationFrame(this.frame);
    if (on) this.frame = requestAnimationFrame(this.tick);
  }

  stop(): void {
    this.ended = true;
    this.play(false);
  }

  seek(place: number): void {
    const to = Math.min(Math.max(0, place), this.loaded);
    if (to < this.place) {
      this.store.clear();
      this.place = this.nextDecision = this.nextFill = 0;
    }
    this.advance(to);
    this.store.redraws++;
    this.shown();
  }

  private readonly tick = (now: number): void => {
    this.owed += (this.speed * Math.min(now - this.before, 1000)) / 1000;
    this.before = now;
    const whole = Math.floor(this.owed);
    this.owed -= whole;
    if (whole > 0) {
      this.advance(Math.min(this.place + whole, this.loaded));
      if (this.place >= this.recording.bars) this.playing = false;
      this.shown();
    }
    if (this.playing) this.frame = requestAnimationFrame(this.tick);
  };

  private advance(to: number): void {
    const { bars, recording } = this;
    if (!bars) return;
    for (; this.place < to; this.place++) {
      const i = this.place, ts_ns = bars.ts_ns[i] as number;
      this.store.delta("market", { ts_ns, open: bars.open[i], high: bars.high[i], low: bars.low[i],
        close: bars.close[i] });
      for (let f; (f = this.fills[this.nextFill]) && f.ts_ns <= ts_ns; this.nextFill++) this.store.delta("trade", f);
      this.store.delta("risk", { ts_ns, position: bars.position[i], entry: bars.entry[i], stop: bars.stop[i],
        target: bars.target[i] });
      this.store.delta("performance", { ts_ns, equity: bars.equity[i] });
      for (let d; (d = this.decisions[this.nextDecision]) && d.ts_ns <= ts_ns; this.nextDecision++) {
        this.store.delta("decision", { regime: null, latency_ms: null, trace_id: `replay-${this.nextDecision}`,
          instrument: recording.instrument, model: recording.model, ...d });
      }
    }
  }
}
