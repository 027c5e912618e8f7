// Requests to the hub: with the token where it belongs, patient with a bad line, and with errors
// that say what to do.
//
// Redirects are followed here, hop by hop: the token must reach the endpoint and nobody else, and
// the headers of the first hop name the content whatever the last one is.
import { setTimeout as sleep } from 'node:timers/promises';
import { expectNotAborted, SiglipError } from '../../errors';
import { codeOf } from '../file_errors';
import type { HubEnvironment } from './environment';

/** An answer whose body is still to come. */
export interface Reply {
  readonly response: Response;
  /** The pieces of its body, none when there is none; ends in an error when the attempt is stopped. */
  readonly body: AsyncIterable<Uint8Array>;
  /** Headers of the endpoint itself, before it redirected. */
  readonly first: Headers;
  /** Tells that bytes arrive. `true`: further than ever before, so attempts are counted anew. */
  readonly alive: (advanced: boolean) => void;
}

/** How often and when a request is repeated. */
export interface RetryPolicy {
  /** Attempts that get no further than the ones before. Default 5. */
  readonly attempts: number;
  /** Wait after the first failure; doubled after every further one. Default 500. */
  readonly firstDelayMs: number;
}

/** A failure that another attempt may not meet. */
export class Dropped extends Error {}

const DEFAULT_RETRY: RetryPolicy = { attempts: 5, firstDelayMs: 500 };
const LONGEST_DELAY_MS = 10_000;
const LONGEST_RETRY_AFTER_S = 300;
const MAX_REDIRECTS = 10;
const MAX_JSON_BYTES = 64 * 1024 * 1024;
const PASSING_STATUS = [408, 425, 429, 500, 502, 503, 504];
// Nobody there at all: worth another attempt only when somebody was a moment ago.
const UNREACHABLE = ['ENOTFOUND', 'ECONNREFUSED', 'ENETUNREACH', 'EHOSTUNREACH'];

/** Requests of one download. */
export class HubSession {
  readonly endpoint: string;
  private readonly origin: string;
  private reached = false;

  /**
   * @param who - named in errors
   * @param id - the repository, named in errors
   */
  constructor(
    private readonly who: string,
    private readonly id: string,
    private readonly environment: HubEnvironment,
    readonly signal: AbortSignal | undefined,
    private readonly retry: RetryPolicy = DEFAULT_RETRY,
  ) {
    this.endpoint = environment.endpoint;
    this.origin = new URL(this.endpoint).origin;
  }

  /** `fetch` for questions with small answers; the whole answer has arrived when it resolves. */
  readonly fetch: typeof fetch = async (input, init) => {
    const url = input instanceof Request ? input.url : String(input);
    return this.request(
      url,
      () => ({ ...init }),
      async ({ response, body, alive }) => {
        const { status, headers, url: at } = response;
        return new Response(await collected(at, body, alive), { status, headers });
      },
    );
  };

  /**
   * Sends a request until `consume` has taken the whole answer.
   *
   * @param init - asked before every attempt
   * @throws SiglipError ERR_NETWORK, ERR_ABORTED, and what `consume` throws
   */
  async request<T>(
    url: string,
    init: () => RequestInit,
    consume: (reply: Reply) => Promise<T>,
  ): Promise<T> {
    let failures = 0;
    const advance = (): void => {
      failures = 0;
    };
    for (;;) {
      expectNotAborted(this.who, this.signal);
      let failure: unknown;
      let wait: number | undefined;
      try {
        const outcome = await this.attempt(url, init(), consume, advance);
        if ('value' in outcome) return outcome.value;
        failure = outcome.refused;
        wait = outcome.waitMs;
      } catch (error) {
        expectNotAborted(this.who, this.signal);
        if (!isPassing(error)) throw error;
        failure = this.lineFailure(url, error);
        if (!this.reached && UNREACHABLE.includes(networkCode(error))) throw failure;
      }
      failures += 1;
      if (failures >= this.retry.attempts) throw failure;
      await this.pause(wait ?? this.delay(failures));
    }
  }

  private async attempt<T>(
    url: string,
    init: RequestInit,
    consume: (reply: Reply) => Promise<T>,
    advance: () => void,
  ): Promise<{ readonly value: T } | { readonly refused: SiglipError; readonly waitMs?: number }> {
    const { timeoutMs } = this.environment;
    const quiet = new AbortController();
    const watchdog = setTimeout(() => {
      quiet.abort(new Dropped(`no byte for ${String(timeoutMs / 1000)} s`));
    }, timeoutMs);
    const signals = [quiet.signal, ...(this.signal === undefined ? [] : [this.signal])];
    const signal = AbortSignal.any(signals);
    try {
      const { response, first } = await this.send(url, init, signal);
      this.reached = true;
      if (!response.ok && response.status !== 416) return this.refused(response, first, url);
      const alive = (advanced: boolean): void => {
        watchdog.refresh();
        if (advanced) advance();
      };
      try {
        const body = piecesOf(response, signal);
        return { value: await consume({ response, body, first, alive }) };
      } finally {
        // Free the connection when the answer was not wanted.
        if (response.body?.locked === false) discard(response.body);
      }
    } catch (error) {
      // fetch wraps the reason of the watchdog or hides it.
      if (quiet.signal.aborted && this.signal?.aborted !== true) throw quiet.signal.reason;
      throw error;
    } finally {
      clearTimeout(watchdog);
    }
  }

  private async send(
    url: string,
    init: RequestInit,
    signal: AbortSignal,
  ): Promise<{ response: Response; first: Headers }> {
    let at = new URL(url);
    let first: Headers | undefined;
    for (let hop = 0; hop <= MAX_REDIRECTS; hop++) {
      const headers = new Headers(init.headers);
      // Lengths and ranges count bytes of the file, not of a compressed form of it.
      headers.set('accept-encoding', 'identity');
      headers.set('user-agent', 'siglip2');
      headers.delete('authorization');
      const { token } = this.environment;
      if (token !== undefined && at.origin === this.origin) {
        headers.set('authorization', `Bearer ${token.value}`);
      }
      const response = await fetch(at, { ...init, headers, redirect: 'manual', signal });
      first ??= response.headers;
      const location = response.headers.get('location');
      if (![301, 302, 303, 307, 308].includes(response.status) || location === null) {
        return { response, first };
      }
      discard(response.body);
      at = this.nextHop(at, location);
    }
    throw new SiglipError(
      'ERR_NETWORK',
      `${this.who}: ${url} must be answered within ${String(MAX_REDIRECTS)} redirects, got more`,
    );
  }

  private nextHop(at: URL, location: string): URL {
    const next = URL.canParse(location, at.href) ? new URL(location, at) : undefined;
    const isFit =
      next !== undefined &&
      (next.protocol === 'https:' || (next.protocol === 'http:' && at.protocol === 'http:'));
    if (isFit) return next;
    throw new SiglipError(
      'ERR_NETWORK',
      `${this.who}: redirect of ${shownUrl(at)} must lead to ${at.protocol === 'https:' ? 'https' : 'http or https'}, got ${JSON.stringify(location)}`,
    );
  }

  // An answer that is a refusal: final, or to be repeated after `waitMs`.
  private refused(
    response: Response,
    first: Headers,
    url: string,
  ): { refused: SiglipError; waitMs?: number } {
    discard(response.body);
    const { status } = response;
    if (!PASSING_STATUS.includes(status)) throw this.refusal(status, first, url);
    const refused = this.failed(
      `${shownUrl(url)} must be answered, got status ${String(status)} again and again`,
      [
        status === 429
          ? 'the hub limits requests; wait some minutes, or set HF_TOKEN for a higher limit.'
          : 'the hub is in trouble; try again later. What was fetched is kept.',
      ],
    );
    const waitMs = retryAfterMs(response.headers.get('retry-after'));
    if (waitMs !== undefined && waitMs > 1000 * LONGEST_RETRY_AFTER_S) throw refused;
    return waitMs === undefined ? { refused } : { refused, waitMs };
  }

  private refusal(status: number, headers: Headers, url: string): SiglipError {
    const { id } = this;
    const { token } = this.environment;
    const reason = headers.get('x-error-code');
    const page = `${this.endpoint}/${id}`;
    if (reason === 'GatedRepo' || status === 403) {
      const sent = token === undefined ? 'set HF_TOKEN to a token of that account' : 'try again';
      return this.failed(`${id} must be open to you, got status ${String(status)}`, [
        `the repository is gated: accept its conditions on ${page}, then ${sent}.`,
      ]);
    }
    if (reason === 'RevisionNotFound') {
      return this.failed(`revision of ${id} must exist, got none of that name`, [
        `see ${page}/commits/main for what exists.`,
      ]);
    }
    if (reason === 'EntryNotFound') {
      return this.failed(`${shownUrl(url)} must exist, got status ${String(status)}`, []);
    }
    if (status === 401 || status === 404) {
      const access =
        token === undefined
          ? 'check the name; for a private repository set HF_TOKEN to a token that may read it.'
          : `check the name, and that the token from ${token.from} is valid and may read it.`;
      return this.failed(
        `${id} must be a repository you can read, got status ${String(status)} from ${this.endpoint}: not found or no access`,
        [access],
      );
    }
    return this.failed(`${shownUrl(url)} must be answered, got status ${String(status)}`, []);
  }

  private lineFailure(url: string, error: unknown): SiglipError {
    const reason = reasonOf(error);
    const code = networkCode(error);
    if (error instanceof Dropped || (this.reached && !UNREACHABLE.includes(code))) {
      return this.failed(
        `${shownUrl(url)} must arrive whole, got ${reason}`,
        ['try again later; what was fetched is kept and continued.'],
        error,
      );
    }
    const isDns = ['ENOTFOUND', 'EAI_AGAIN'].includes(code);
    return this.failed(
      `${shownUrl(url)} must be reachable, got ${reason}`,
      [
        isDns
          ? `check the network and the name of the endpoint ${this.endpoint} (HF_ENDPOINT sets another).`
          : 'check the network and try again; what was fetched is kept and continued.',
        `or bring the files here by hand: all of ${this.id} into a folder, and give that folder as the source.`,
      ],
      error,
    );
  }

  private failed(what: string, remedies: readonly string[], cause?: unknown): SiglipError {
    const lines = remedies.map((remedy) => `\nto do: ${remedy}`).join('');
    return new SiglipError('ERR_NETWORK', `${this.who}: ${what}${lines}`, { cause });
  }

  private delay(failures: number): number {
    const full = Math.min(this.retry.firstDelayMs * 2 ** (failures - 1), LONGEST_DELAY_MS);
    // Many clients that were dropped together shall not come back together.
    return full * (0.5 + 0.5 * Math.random());
  }

  private async pause(ms: number): Promise<void> {
    try {
      await sleep(ms, undefined, { signal: this.signal });
    } catch {
      expectNotAborted(this.who, this.signal);
    }
  }
}

async function collected(
  url: string,
  body: Reply['body'],
  alive: Reply['alive'],
): Promise<Uint8Array> {
  const chunks: Uint8Array[] = [];
  let bytes = 0;
  for await (const chunk of body) {
    alive(false);
    chunks.push(chunk);
    bytes += chunk.byteLength;
    if (bytes > MAX_JSON_BYTES) {
      throw new SiglipError(
        'ERR_NETWORK',
        `${url}: answer must have at most ${String(MAX_JSON_BYTES)} bytes, got more`,
      );
    }
  }
  return Buffer.concat(chunks);
}

// The signal is watched here, too: a body that fetch has stopped between two reads may leave the next
// one waiting for ever.
async function* piecesOf(response: Response, signal: AbortSignal): AsyncGenerator<Uint8Array> {
  if (response.body === null) return;
  const reader = (response.body as ReadableStream<Uint8Array>).getReader();
  let stopRead: (reason: unknown) => void = () => undefined;
  const stop = (): void => {
    stopRead(signal.reason);
  };
  // A promise per read: one for all would gather a reaction per piece.
  const read = (): ReturnType<typeof reader.read> =>
    new Promise((resolve, reject) => {
      stopRead = reject;
      if (signal.aborted) stop();
      else reader.read().then(resolve, reject);
    });
  signal.addEventListener('abort', stop);
  try {
    for (;;) {
      const { done, value } = await read();
      if (done) return;
      yield value;
    }
  } finally {
    signal.removeEventListener('abort', stop);
    discard(reader);
  }
}

// Gives the connection back. Not waited for: what was stopped may never say that it has.
function discard(body: { cancel(): Promise<void> } | null): void {
  body?.cancel().catch(() => undefined);
}

// What is thrown while a request is under way is of the line, unless it is one of our own errors or
// one of the file system.
function isPassing(error: unknown): boolean {
  if (error instanceof SiglipError) return false;
  if (error instanceof Dropped) return true;
  return networkCode(error) !== '' || isFetchFailure(error);
}

// Not instanceof: errors of fetch may come from another realm.
function isFetchFailure(error: unknown): boolean {
  return (
    typeof error === 'object' && error !== null && 'name' in error && error.name === 'TypeError'
  );
}

// fetch says only "fetch failed" or "terminated"; why is in the cause.
function networkCode(error: unknown): string {
  const cause = causeOf(error);
  if (cause === undefined) return '';
  const [own] = 'errors' in cause && Array.isArray(cause.errors) ? (cause.errors as unknown[]) : [];
  return codeOf(cause) === '' ? codeOf(own) : codeOf(cause);
}

function causeOf(error: unknown): object | undefined {
  if (typeof error !== 'object' || error === null || !('cause' in error)) return undefined;
  return typeof error.cause === 'object' && error.cause !== null ? error.cause : undefined;
}

function reasonOf(error: unknown): string {
  const cause = causeOf(error);
  const said = cause !== undefined && 'message' in cause ? String(cause.message) : '';
  if (said !== '') return said;
  const code = networkCode(error);
  if (code !== '') return code;
  return typeof error === 'object' && error !== null && 'message' in error
    ? String(error.message)
    : String(error);
}

// Seconds or a date.
function retryAfterMs(header: string | null): number | undefined {
  if (header === null) return undefined;
  const seconds = Number(header);
  const ms = Number.isFinite(seconds) ? 1000 * seconds : Date.parse(header) - Date.now();
  return Number.isFinite(ms) ? Math.max(ms, 0) : undefined;
}

// Signed addresses carry secrets in what follows the question mark.
function shownUrl(url: string | URL): string {
  const { origin, pathname } = new URL(url);
  return origin + pathname;
}
