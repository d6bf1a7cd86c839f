// What the service sends: the stream's messages (docs/serving/page.md) and the rows of a recording.

export interface Proposal {
  contracts: number;
  stop_distance: number;
  target_distance: number;
  limit: string;
}

/** One answer of the service. Times are nanoseconds UTC; beyond 2^53 their last digits are rounded, which is well
 * below the millisecond that the page shows. */
export interface Decision {
  trace_id: string;
  ts_ns: number;
  instrument: string;
  price: number;
  verdict: "EXECUTE" | "CLOSE" | "REJECT";
  reason: string;
  direction: number;
  confidence: number | null;
  votes: Record<string, [number, number, number]>;
  proposal: Proposal | null;
  uncertainty: Record<string, number> | null;
  regime: number[] | Record<string, number> | string | null;
  model: string;
  latency_ms: number | null;
}

/** A closed base bar; `ts_ns` is its close. */
export interface Bar {
  ts_ns: number;
  instrument?: string;
  open: number;
  high: number;
  low: number;
  close: number;
}

export interface Fill {
  ts_ns: number;
  quantity: number;
  price: number;
  cause: string;
  pnl: number | null;
}

/** The open position as of a bar's close; `position` 0 where there is none. */
export interface Risk {
  ts_ns: number;
  position: number;
  entry: number | null;
  stop: number | null;
  target: number | null;
}

export interface Performance {
  ts_ns: number;
  equity: number;
}

/** The kill switch as it was changed last: while it is thrown no position is opened. */
export interface KillSwitch {
  thrown: boolean;
  revision: number;
  user: string;
  why: string;
  at_ns: number;
}

export interface StreamState {
  model: Record<string, unknown> | null;
  decisions: Decision[];
  regime: Decision["regime"];
  shadow: Record<string, unknown> | null;
  latency: Record<string, unknown> | null;
  kill?: KillSwitch | null;
}

export type Message =
  | { type: "snapshot"; stream: string; seq: number; state: StreamState }
  | { type: "delta"; seq: number; topic: string; ts_ns: number; data: Record<string, unknown> }
  | { type: "heartbeat"; seq: number };
