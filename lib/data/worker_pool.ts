// Worker threads that share tasks and may die.
//
// The pool keeps a task until its result has come. When a thread ends (a crash, no memory left, an
// exit), what it was at goes to others and a new thread takes its place. A task that has outlived a
// thread is given again alone, so that of several suspects only the guilty one can fail; what costs a
// third thread is given up.
import { extname, join } from 'node:path';
import { Worker } from 'node:worker_threads';
import { SiglipError } from '../errors';
import { errorOfThread, type ThreadError } from './thread_messages';

export interface WorkerPoolOptions {
  /** Absolute path of a module. */
  readonly module: string;
  /** Its export that does a task: `(task) => result | Promise<result>`. */
  readonly handler: string;
  /** Threads, 1 or more. */
  readonly workers: number;
  /** Tasks that a thread works on at once. Default 2: one waits for the disk while one computes. */
  readonly tasksAtOnce?: number | undefined;
  /** What threads are called, with a number after it. Default the handler's name. */
  readonly name?: string | undefined;
  /** Largest heap of a thread in MiB. Default: that of Node. */
  readonly heapMegabytes?: number | undefined;
  /** Node options of the threads. Default: those of this one. */
  readonly execArgv?: readonly string[] | undefined;
  /** Called when a thread has ended by itself; another has taken its place. */
  readonly onLost?: ((worker: string, reason: string) => void) | undefined;
}

/** What a thread is started with. */
export interface PoolWorkerData {
  readonly module: string;
  readonly handler: string;
}

/** A task for a thread. */
export interface PoolRequest {
  readonly id: number;
  readonly task: unknown;
}

/** What a thread says. */
export type PoolReply =
  | { readonly kind: 'ready' }
  | { readonly kind: 'result'; readonly id: number; readonly result: unknown }
  | { readonly kind: 'error'; readonly id: number; readonly error: ThreadError };

interface Job {
  readonly id: number;
  readonly task: unknown;
  /** Threads that ended while they were at it. */
  deaths: number;
  readonly resolve: (result: unknown) => void;
  readonly reject: (error: SiglipError) => void;
}

interface Member {
  readonly name: string;
  readonly thread: Worker;
  readonly jobs: Map<number, Job>;
  ready: boolean;
  /** Why it is about to end. */
  reason: string | undefined;
}

/** Threads that a task may cost. */
const MAX_DEATHS = 3;

/** Threads that may end one after another before they have begun to serve. */
const MAX_FALSE_STARTS = 3;

/**
 * Does tasks on worker threads. Results are those of the handler, whatever thread gives them and
 * however often threads are replaced.
 *
 * An idle pool does not keep the process alive.
 *
 * @example
 * const pool = new WorkerPool<string, number>({ module, handler: 'lengthOf', workers: 2 });
 * const length = await pool.run('text');
 * await pool.close();
 */
export class WorkerPool<T, R> {
  private readonly waiting: Job[] = [];
  private readonly members: (Member | undefined)[] = [];
  private started = 0;
  private falseStarts = 0;
  private nextId = 0;
  private failure: SiglipError | undefined;
  private readonly name: string;
  private readonly tasksAtOnce: number;

  /** @throws ERR_ARGUMENT */
  constructor(private readonly options: WorkerPoolOptions) {
    const { workers, tasksAtOnce = 2, handler, name = handler } = options;
    for (const [what, value] of Object.entries({ workers, tasksAtOnce })) {
      if (Number.isSafeInteger(value) && value >= 1) continue;
      throw new SiglipError(
        'ERR_ARGUMENT',
        `WorkerPool: ${what} must be a positive integer, got ${String(value)}`,
      );
    }
    this.name = name;
    this.tasksAtOnce = tasksAtOnce;
    for (let place = 0; place < workers; place++) this.start(place);
  }

  /**
   * Does a task. Calls overlap.
   *
   * @throws the handler's error; ERR_DATA for a task that threads die of; ERR_DISPOSED after `close`
   */
  run(task: T): Promise<R> {
    return new Promise<R>((resolve, reject) => {
      if (this.failure !== undefined) {
        reject(this.failure);
        return;
      }
      const job = { id: this.nextId++, task, deaths: 0, resolve, reject } as Job;
      this.waiting.push(job);
      this.assign();
    });
  }

  /** Ends the threads; tasks that wait are rejected with ERR_DISPOSED. */
  async close(): Promise<void> {
    this.fail(new SiglipError('ERR_DISPOSED', `WorkerPool: ${this.name} must be open, got closed`));
    const threads = this.members.flatMap((member) => member?.thread ?? []);
    this.members.fill(undefined);
    await Promise.all(threads.map((thread) => thread.terminate()));
  }

  private start(place: number): void {
    const { module, handler, heapMegabytes, execArgv } = this.options;
    const workerData: PoolWorkerData = { module, handler };
    const name = `${this.name} ${String(++this.started)}`;
    const thread = new Worker(join(__dirname, `pool_worker${extname(__filename)}`), {
      workerData,
      name,
      ...(execArgv === undefined ? {} : { execArgv: [...execArgv] }),
      ...(heapMegabytes === undefined
        ? {}
        : { resourceLimits: { maxOldGenerationSizeMb: heapMegabytes } }),
    });
    const member: Member = { name, thread, jobs: new Map(), ready: false, reason: undefined };
    this.members[place] = member;
    thread.unref();
    thread.on('message', (reply: PoolReply) => {
      this.receive(member, reply);
    });
    thread.on('error', (error: unknown) => {
      member.reason = error instanceof Error ? error.message : String(error);
    });
    thread.on('exit', (code) => {
      if (this.members[place] === member) this.replace(place, member, code);
    });
  }

  private replace(place: number, member: Member, code: number): void {
    const reason = member.reason ?? `the thread ended with code ${String(code)}`;
    this.falseStarts = member.ready ? 0 : this.falseStarts + 1;
    if (this.falseStarts >= MAX_FALSE_STARTS) {
      const cause = { code: undefined, message: reason, stack: undefined };
      this.fail(errorOfThread(`WorkerPool: worker ${member.name} must start, got`, cause));
      this.members[place] = undefined;
      return;
    }
    this.start(place);
    this.options.onLost?.(member.name, reason);
    for (const job of [...member.jobs.values()].reverse()) {
      job.deaths++;
      if (job.deaths < MAX_DEATHS) this.waiting.unshift(job);
      else {
        job.reject(
          new SiglipError(
            'ERR_DATA',
            `WorkerPool: a task must leave its worker alive, got ${String(MAX_DEATHS)} that ended: ${reason}`,
          ),
        );
      }
    }
    this.assign();
  }

  private receive(member: Member, reply: PoolReply): void {
    if (reply.kind === 'ready') {
      member.ready = true;
    } else {
      const job = member.jobs.get(reply.id);
      member.jobs.delete(reply.id);
      if (member.jobs.size === 0) member.thread.unref();
      if (reply.kind === 'result') job?.resolve(reply.result);
      else job?.reject(errorOfThread(`worker ${member.name}`, reply.error));
    }
    this.assign();
  }

  /** Gives what waits to threads with room; a suspect only to one that is idle, and alone. */
  private assign(): void {
    while (this.waiting.length > 0) {
      const [job] = this.waiting;
      const member = this.leastBusy(job.deaths > 0 ? 1 : this.tasksAtOnce);
      if (member === undefined) return;
      this.waiting.shift();
      member.jobs.set(job.id, job);
      member.thread.ref();
      member.thread.postMessage({ id: job.id, task: job.task } satisfies PoolRequest);
    }
  }

  private leastBusy(room: number): Member | undefined {
    let found: Member | undefined;
    for (const member of this.members) {
      if (member === undefined) continue;
      const { jobs } = member;
      const hasSuspect = [...jobs.values()].some(({ deaths }) => deaths > 0);
      if (hasSuspect || jobs.size >= room) continue;
      if (found === undefined || jobs.size < found.jobs.size) found = member;
    }
    return found;
  }

  private fail(failure: SiglipError): void {
    this.failure ??= failure;
    const jobs = this.members.flatMap((member) => [...(member?.jobs.values() ?? [])]);
    for (const job of [...this.waiting.splice(0), ...jobs]) job.reject(this.failure);
    for (const member of this.members) member?.jobs.clear();
  }
}
