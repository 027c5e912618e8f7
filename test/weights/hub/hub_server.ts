// A hub for tests: the part of the protocol of huggingface.co that reading a model needs, over HTTP on
// this machine, with a second server in the role of the CDN, and faults on request.
//
//   GET  /api/models/{id}/revision/{rev}            commit and file names
//   GET  /api/models/{id}/tree/{rev}                files with size and object id, in pages
//   POST /api/models/{id}/paths-info/{rev}          the same for given paths
//   HEAD, GET /{id}/resolve/{rev}/{file}            small files at once, large ones by a redirect
//   GET  CDN /{oid}?signature=…                     large files, with ranges
import { createHash } from 'node:crypto';
import type { IncomingMessage, Server, ServerResponse } from 'node:http';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';

/** How one answer goes wrong. */
export interface Fault {
  /** Answer with this status and nothing else. */
  readonly status?: number;
  readonly headers?: Readonly<Record<string, string>>;
  /** Close the connection after so many bytes of the body. */
  readonly cutAfter?: number;
  /** Send nothing more after so many bytes, and keep the connection. */
  readonly stallAfter?: number;
  /** Pause between pieces of 1 KiB. */
  readonly slowMs?: number;
  /** Invert the last byte of the body. */
  readonly damaged?: boolean;
  /** Answer a range with the whole file. */
  readonly ignoreRange?: boolean;
  /** Answer a range with another one. */
  readonly shiftRange?: boolean;
  /** End the body early, with a Content-Length to match. */
  readonly shorter?: number;
  /** Bytes after the end, with a Content-Length to match. */
  readonly longer?: number;
}

export interface Seen {
  readonly server: 'hub' | 'cdn';
  readonly method: string;
  readonly path: string;
  readonly headers: IncomingMessage['headers'];
}

interface Repository {
  readonly commits: Map<string, ReadonlyMap<string, Buffer>>;
  readonly refs: Map<string, string>;
  access: 'public' | 'private' | 'gated';
  /** Old name that redirects here. */
  formerly?: string;
}

interface Content {
  readonly data: Buffer;
  readonly oid: string;
  readonly large: boolean;
}

const PIECE = 1024;

export class HubServer {
  readonly seen: Seen[] = [];
  /** Asked for every request; what it gives goes wrong. */
  fault: (request: Seen) => Fault | undefined = () => undefined;
  /** Sizes that are listed instead of the true ones, by file. */
  readonly sizes = new Map<string, number>();
  /** Name of this machine in addresses of the CDN; Python follows redirects to the same name. */
  cdnHost = '127.0.0.1';
  /** Files of one page of a listing. */
  pageSize = 3;
  /** The token that opens private repositories. */
  readonly token = 'hf_right';
  /** Bytes of bodies sent so far. */
  sent = 0;
  private readonly repositories = new Map<string, Repository>();
  private readonly contents = new Map<string, Content>();
  private readonly hub: Server;
  private readonly cdn: Server;

  private constructor() {
    this.hub = this.server('hub', (...args) => this.answer(...args));
    this.cdn = this.server('cdn', (...args) => this.answerCdn(...args));
  }

  static async start(): Promise<HubServer> {
    const server = new HubServer();
    for (const each of [server.hub, server.cdn]) {
      await new Promise<void>((done) => each.listen(0, '127.0.0.1', done));
    }
    return server;
  }

  get cdnEndpoint(): string {
    return addressOf(this.cdn).replace('127.0.0.1', this.cdnHost);
  }

  /** Object id of a large file. */
  oidOf(data: Buffer): string {
    return createHash('sha256').update(data).digest('hex');
  }

  get endpoint(): string {
    return addressOf(this.hub);
  }

  async stop(): Promise<void> {
    for (const each of [this.hub, this.cdn]) {
      each.closeAllConnections();
      await new Promise((done) => each.close(done));
    }
  }

  /** Adds a commit and gives its id; `revision` means it from now on. */
  commit(id: string, files: ReadonlyMap<string, Buffer>, revision = 'main'): string {
    const repository = this.repository(id);
    const hash = createHash('sha1').update(`${id} ${String(repository.commits.size)}`);
    const commit = hash.digest('hex');
    repository.commits.set(commit, files);
    repository.refs.set(revision, commit);
    return commit;
  }

  restrict(id: string, access: 'private' | 'gated'): void {
    this.repository(id).access = access;
  }

  rename(former: string, id: string): void {
    this.repository(id).formerly = former;
  }

  /** Requests for the content of a file, on either server. */
  bodiesOf(name: string): Seen[] {
    const oids = [...this.contents].filter(([key]) => key.endsWith(` ${name}`));
    const paths = oids.map(([, { oid }]) => `/${oid}`);
    return this.seen.filter(
      ({ server, method, path }) =>
        method === 'GET' &&
        (server === 'cdn'
          ? paths.includes(path.split('?')[0])
          : path.includes('/resolve/') &&
            path.endsWith(`/${name}`) &&
            !oids.some(([, { large }]) => large)),
    );
  }

  private repository(id: string): Repository {
    const found = this.repositories.get(id);
    if (found !== undefined) return found;
    const made: Repository = { commits: new Map(), refs: new Map(), access: 'public' };
    this.repositories.set(id, made);
    return made;
  }

  private content(id: string, name: string, data: Buffer): Content {
    const large = /\.(?:safetensors|model|bin|onnx)$/u.test(name) || data.length > 100_000;
    const oid = large
      ? this.oidOf(data)
      : createHash('sha1')
          .update(`blob ${String(data.length)}\0`)
          .update(data)
          .digest('hex');
    const content = { data, oid, large };
    this.contents.set(`${id} ${name}`, content);
    this.contents.set(oid, content);
    return content;
  }

  private server(
    name: 'hub' | 'cdn',
    answer: (request: Seen, response: ServerResponse, fault: Fault) => Promise<void>,
  ): Server {
    return createServer((incoming, response) => {
      const { method = 'GET', url = '/', headers } = incoming;
      incoming.resume();
      const request = { server: name, method, path: url, headers };
      this.seen.push(request);
      const fault = this.fault(request) ?? {};
      if (fault.status !== undefined) {
        response.writeHead(fault.status, fault.headers).end('not now');
        return;
      }
      answer(request, response, fault).catch(() => response.destroy());
    });
  }

  private async answer(request: Seen, response: ServerResponse, fault: Fault): Promise<void> {
    const url = new URL(request.path, this.endpoint);
    const [, api, id, action, rev, name] =
      /^(\/api\/models)?\/([^/]+\/[^/]+)\/(revision|tree|paths-info|resolve)\/([^/]+)(?:\/(.+))?$/u.exec(
        url.pathname,
      ) ?? [];
    const moved = [...this.repositories].find(([, { formerly }]) => formerly === id)?.[0];
    if (moved !== undefined) {
      response.writeHead(307, { location: request.path.replace(id, moved) }).end();
      return;
    }
    const repository = this.repositories.get(id);
    const isAllowed = request.headers.authorization === `Bearer ${this.token}`;
    if (repository === undefined || (repository.access === 'private' && !isAllowed)) {
      // As the hub does: nobody learns which private repositories exist.
      refuse(response, 401, 'RepoNotFound');
      return;
    }
    const revision = decodeURIComponent(rev);
    const commit = repository.refs.get(revision) ?? revision;
    const files = repository.commits.get(commit);
    if (files === undefined) {
      refuse(response, 404, 'RevisionNotFound');
      return;
    }
    if (action === 'revision' && api !== undefined) {
      const siblings = [...files.keys()].map((rfilename) => ({ rfilename }));
      json(response, { _id: '1', id, modelId: id, sha: commit, siblings, private: false });
      return;
    }
    if (repository.access === 'gated' && !isAllowed) {
      refuse(response, 403, 'GatedRepo');
      return;
    }
    const entries = [...files].map(([path, data]) => this.entry(id, path, data));
    if (action === 'tree') {
      const from = Number(url.searchParams.get('cursor') ?? 0);
      const next = from + this.pageSize;
      url.searchParams.set('cursor', String(next));
      const more = next < entries.length;
      json(
        response,
        entries.slice(from, next),
        more ? { link: `<${url.href}>; rel="next"` } : undefined,
      );
      return;
    }
    const data = files.get(decodeURIComponent(name ?? ''));
    if (data === undefined) {
      refuse(response, 404, 'EntryNotFound', { 'x-repo-commit': commit });
      return;
    }
    const { oid, large } = this.content(id, decodeURIComponent(name), data);
    const headers = { 'x-repo-commit': commit, 'accept-ranges': 'bytes', etag: `"${oid}"` };
    if (!large) {
      await this.body(request, response, data, headers, fault);
      return;
    }
    response
      .writeHead(302, {
        ...headers,
        etag: `"${createHash('md5').update(oid).digest('hex')}"`,
        'x-linked-size': String(data.length),
        'x-linked-etag': `"${oid}"`,
        location: `${this.cdnEndpoint}/${oid}?signature=secret`,
      })
      .end('Found');
  }

  private async answerCdn(request: Seen, response: ServerResponse, fault: Fault): Promise<void> {
    const content = this.contents.get(request.path.slice(1).split('?')[0]);
    if (content === undefined) {
      response.writeHead(404).end();
      return;
    }
    const etag = `"${createHash('md5').update(content.data).digest('hex')}-1"`;
    const headers = { etag, 'accept-ranges': 'bytes' };
    await this.body(request, response, content.data, headers, fault);
  }

  private entry(id: string, path: string, data: Buffer): object {
    const { oid, large } = this.content(id, path, data);
    const size = this.sizes.get(path) ?? data.length;
    return large
      ? { type: 'file', path, size, oid: '0'.repeat(40), lfs: { oid, size, pointerSize: 134 } }
      : { type: 'file', path, size, oid };
  }

  private async body(
    request: Seen,
    response: ServerResponse,
    whole: Buffer,
    headers: Readonly<Record<string, string>>,
    fault: Fault,
  ): Promise<void> {
    const range = /^bytes=(\d+)-(\d*)$/u.exec(request.headers.range ?? '');
    let data = Buffer.from(whole);
    if (fault.damaged === true) data[data.length - 1] ^= 0xff;
    let extra: Readonly<Record<string, string>> = {};
    let status = 200;
    if (range !== null && fault.ignoreRange !== true) {
      const first = Number(range[1]) + (fault.shiftRange === true ? 1 : 0);
      const last = range[2] === '' ? data.length - 1 : Math.min(Number(range[2]), data.length - 1);
      if (first >= data.length) {
        response.writeHead(416, { 'content-range': `bytes */${String(data.length)}` }).end();
        return;
      }
      status = 206;
      extra = {
        'content-range': `bytes ${String(first)}-${String(last)}/${String(data.length)}`,
      };
      data = data.subarray(first, last + 1);
    }
    if (fault.shorter !== undefined) data = data.subarray(0, data.length - fault.shorter);
    if (fault.longer !== undefined) data = Buffer.concat([data, Buffer.alloc(fault.longer)]);
    response.writeHead(status, { ...headers, ...extra, 'content-length': String(data.length) });
    if (request.method === 'HEAD') {
      response.end();
      return;
    }
    const { cutAfter = Infinity, stallAfter = Infinity, slowMs = 0 } = fault;
    const end = Math.min(data.length, cutAfter, stallAfter);
    for (let at = 0; at < end; at += PIECE) {
      const piece = data.subarray(at, Math.min(at + PIECE, end));
      await new Promise((done) => response.write(piece, done));
      this.sent += piece.length;
      if (slowMs > 0) await sleep(slowMs);
      if (response.destroyed) return;
    }
    if (stallAfter < data.length) return;
    if (cutAfter < data.length) response.destroy();
    else response.end();
  }
}

function addressOf(server: Server): string {
  return `http://127.0.0.1:${String((server.address() as AddressInfo).port)}`;
}

function json(
  response: ServerResponse,
  content: unknown,
  headers?: Readonly<Record<string, string>>,
): void {
  response.writeHead(200, { 'content-type': 'application/json', ...headers });
  response.end(JSON.stringify(content));
}

function refuse(
  response: ServerResponse,
  status: number,
  code: string,
  headers: Readonly<Record<string, string>> = {},
): void {
  response.writeHead(status, {
    'content-type': 'application/json',
    'x-error-code': code,
    ...headers,
  });
  response.end(JSON.stringify({ error: code }));
}
