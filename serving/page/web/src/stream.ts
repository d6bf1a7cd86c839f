// WS /v1/stream: back-off, resume by (stream, seq), and a gap is never skipped in silence.
import type { Message } from "./types";

export type Connection = "connecting" | "live" | "stale" | "reconnecting" | "refused" | "closed";

const FIRST_WAIT_MS = 250;
const LONGEST_WAIT_MS = 15_000;
const REFUSALS_BEFORE_ASKING = 3;

export interface StreamEvents {
  message(message: Message): void;
  state(state: Connection, detail: string): void;
  /** Asked when the connection is refused before it opens: is the token still taken? */
  stillAdmitted(): Promise<boolean>;
}

export class Stream {
  private socket: WebSocket | null = null;
  private stream: string | null = null;
  private seq = 0;
  private wait = FIRST_WAIT_MS;
  private failures = 0;
  private heardAt = 0;
  private retry = 0;
  private watch = 0;
  private ended = false;

  constructor(
    private readonly token: string,
    private readonly events: StreamEvents,
    private readonly staleMs = 12_000,
  ) {}

  start(): void {
    this.watch = window.setInterval(() => this.checkAge(), 500);
    window.addEventListener("online", this.now);
    this.connect();
  }

  stop(): void {
    this.ended = true;
    window.clearInterval(this.watch);
    window.clearTimeout(this.retry);
    window.removeEventListener("online", this.now);
    if (this.socket) quit(this.socket);
    this.events.state("closed", "");
  }

  private readonly now = (): void => {
    if (!this.socket) {
      window.clearTimeout(this.retry);
      this.connect();
    }
  };

  private connect(): void {
    const scheme = location.protocol === "https:" ? "wss:" : "ws:";
    const resume = this.stream === null ? "" : `?stream=${encodeURIComponent(this.stream)}&seq=${this.seq}`;
    this.events.state(this.stream === null ? "connecting" : "reconnecting", "");
    const socket = new WebSocket(`${scheme}//${location.host}/v1/stream${resume}`,
      ["algospace", `bearer.${this.token}`]);
    this.socket = socket;
    let opened = false;
    socket.onopen = () => { opened = true; };
    socket.onmessage = (event) => {
      if (this.socket === socket) this.take(JSON.parse(String(event.data)) as Message);
    };
    socket.onclose = (event) => {
      if (this.socket === socket) void this.lost(opened, event.reason);
    };
  }

  private take(message: Message): void {
    if (message.type === "snapshot") {
      this.stream = message.stream;
      this.seq = message.seq;
    } else if (message.type === "delta") {
      if (message.seq <= this.seq) return; // seen before the connection broke
      if (message.seq !== this.seq + 1) return this.afresh();
      this.seq = message.seq;
    } else if (message.seq > this.seq) {
      return this.afresh();
    }
    this.heardAt = performance.now();
    this.wait = FIRST_WAIT_MS;
    this.failures = 0;
    this.events.message(message);
    this.events.state("live", `event ${this.seq}`);
  }

  /** Something is missing: only a new snapshot brings the page to a state that was. */
  private afresh(): void {
    this.stream = null;
    this.seq = 0;
    const socket = this.socket;
    this.socket = null;
    if (socket) quit(socket);
    this.later("a message is missing");
  }

  private async lost(opened: boolean, reason: string): Promise<void> {
    this.socket = null;
    if (this.ended) return;
    if (!opened && ++this.failures >= REFUSALS_BEFORE_ASKING) {
      this.failures = 0;
      let admitted = true;
      try {
        admitted = await this.events.stillAdmitted();
      } catch {
        admitted = true; // no answer at all says nothing about the token
      }
      if (this.ended) return;
      if (!admitted) {
        this.stop();
        this.events.state("refused", "the token is not taken any more");
        return;
      }
    }
    this.later(reason);
  }

  private later(reason: string): void {
    if (this.ended) return;
    // half fixed, half random: a hundred pages do not come back in the same instant
    const wait = this.wait * (0.5 + Math.random() / 2);
    this.wait = Math.min(2 * this.wait, LONGEST_WAIT_MS);
    this.events.state("reconnecting", reason || `next try in ${(wait / 1000).toFixed(1)} s`);
    this.retry = window.setTimeout(() => this.connect(), wait);
  }

  private checkAge(): void {
    if (this.socket && this.heardAt > 0 && performance.now() - this.heardAt > this.staleMs) {
      this.events.state("stale", `nothing heard for ${Math.round((performance.now() - this.heardAt) / 1000)} s`);
      if (performance.now() - this.heardAt > 3 * this.staleMs) { // a dead connection does not say so
        const socket = this.socket;
        this.socket = null;
        quit(socket);
        this.later("no answer");
      }
    }
  }
}

/** Closed before it is open, a socket would write an error to the console. */
function quit(socket: WebSocket): void {
  socket.onmessage = null;
  if (socket.readyState === WebSocket.CONNECTING) socket.onopen = () => socket.close();
  else socket.close();
}
