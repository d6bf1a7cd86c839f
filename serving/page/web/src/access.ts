// The bearer token: kept for this tab only, never in a URL, a cookie or local storage.

const KEY = "algospace.token";
const ROLE = "algospace.role";
const ROLES = ["viewer", "trader", "risk", "admin"];

export class Unauthorised extends Error {}

export class Access {
  token: string | null = sessionStorage.getItem(KEY);
  role: string | null = sessionStorage.getItem(ROLE);

  keep(token: string, role: string | null): void {
    this.token = token;
    this.role = role ?? roleIn(token);
    sessionStorage.setItem(KEY, token);
    if (this.role) sessionStorage.setItem(ROLE, this.role);
    else sessionStorage.removeItem(ROLE);
  }

  forget(): void {
    this.token = this.role = null;
    sessionStorage.removeItem(KEY);
    sessionStorage.removeItem(ROLE);
  }

  /** Exchange a name and a password for a token; throws a line to show where that fails. */
  async login(user: string, password: string): Promise<void> {
    const answer = await fetch("/v1/login", {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ user, password }),
    });
    const body = await bodyOf(answer);
    if (!answer.ok || typeof body["token"] !== "string") throw new Error(detailOf(body, answer.status));
    this.keep(body["token"], typeof body["role"] === "string" ? body["role"] : null);
  }

  /** A document of the service; Unauthorised where the token is not, or no longer, taken. */
  async get(path: string): Promise<Record<string, unknown>> {
    const answer = await fetch(path, { headers: { authorization: `Bearer ${this.token ?? ""}` } });
    const body = await bodyOf(answer);
    if (answer.status === 401) throw new Unauthorised(detailOf(body, 401));
    if (!answer.ok) throw new Error(detailOf(body, answer.status));
    return body;
  }
}

async function bodyOf(answer: Response): Promise<Record<string, unknown>> {
  const text = await answer.text();
  try {
    const body: unknown = JSON.parse(text);
    return typeof body === "object" && body !== null ? (body as Record<string, unknown>) : {};
  } catch {
    return {}; // a proxy's own page: the status says enough
  }
}

function detailOf(body: Record<string, unknown>, status: number): string {
  return typeof body["detail"] === "string" ? body["detail"] : `the service answered ${status}`;
}

/** The role that a JWT claims, for display only: the service checks it, the page does not rely on it. */
function roleIn(token: string): string | null {
  const part = token.split(".")[1];
  if (!part) return null;
  try {
    const claims = JSON.parse(atob(part.replace(/-/g, "+").replace(/_/g, "/"))) as Record<string, unknown>;
    const role = claims["role"];
    return typeof role === "string" && ROLES.includes(role) ? role : null;
  } catch {
    return null; // not a JWT
  }
}
