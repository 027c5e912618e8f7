// The worker thread of `Prefetch`: makes values of one stream as long as it has credits.
import { createRequire } from 'node:module';
import { parentPort, workerData, type Transferable } from 'node:worker_threads';
import type {
  PrefetchFailure,
  PrefetchReply,
  PrefetchRequest,
  PrefetchWorkerData,
} from './prefetch';
import type { Stream } from './stream';

type Factory = (input: unknown) => Stream<unknown> | Promise<Stream<unknown>>;

const port = parentPort;
if (port === null) throw new Error('prefetch_worker: must run on a worker thread');

function post(reply: PrefetchReply, transfer: readonly Transferable[] = []): void {
  port?.postMessage(reply, transfer);
}

function failureOf(error: unknown): PrefetchFailure {
  if (!(error instanceof Error)) {
    return { code: undefined, message: String(error), stack: undefined };
  }
  const { code } = error as NodeJS.ErrnoException;
  return { code, message: error.message, stack: error.stack };
}

/**
 * Buffers to hand over rather than copy: those of typed arrays directly in the value that cover
 * their buffer whole. The stream must not keep them, which a stream of fresh values does not.
 */
function transferable(value: unknown): Transferable[] {
  if (typeof value !== 'object' || value === null) return [];
  const buffers = new Set<ArrayBuffer>();
  for (const member of Object.values(value)) {
    if (!ArrayBuffer.isView(member) || !(member.buffer instanceof ArrayBuffer)) continue;
    if (member.byteLength === member.buffer.byteLength) buffers.add(member.buffer);
  }
  return [...buffers];
}

async function serve({ module, factory, input, ahead }: PrefetchWorkerData): Promise<void> {
  const exported = createRequire(__filename)(module) as Record<string, unknown>;
  const make = exported[factory];
  if (typeof make !== 'function') {
    throw new Error(`${module} must export the function ${factory}, got ${typeof make}`);
  }
  const stream = await (make as Factory)(input);
  let credits = ahead;
  let generation = 0;
  let running = false;
  let chain = Promise.resolve(); // requests in order, never two at a time inside the stream

  const produce = async (): Promise<void> => {
    running = true;
    const of = generation;
    try {
      while (credits > 0 && of === generation) {
        const value = await stream.next();
        if (of !== generation) break;
        credits--;
        post({ kind: 'value', generation, value, state: stream.state() }, transferable(value));
        // Lets requests that wait be heard between two values.
        await new Promise((resolve) => setImmediate(resolve));
      }
    } finally {
      running = false;
    }
  };
  const enqueue = (work: () => Promise<void>): void => {
    chain = chain.then(work).catch((error: unknown) => {
      credits = 0;
      post({ kind: 'failed', error: failureOf(error) });
    });
  };

  port?.on('message', (request: PrefetchRequest) => {
    switch (request.kind) {
      case 'credit':
        credits++;
        if (!running) enqueue(produce);
        break;
      case 'restore':
        generation = request.generation;
        enqueue(async () => {
          try {
            await stream.restore(request.state);
          } catch (error) {
            post({ kind: 'rejected', generation: request.generation, error: failureOf(error) });
            credits = 0;
            return;
          }
          credits = ahead;
          post({ kind: 'restored', generation: request.generation, state: stream.state() });
        });
        enqueue(produce);
        break;
    }
  });
  post({ kind: 'ready', state: stream.state() });
  enqueue(produce);
}

serve(workerData as PrefetchWorkerData).catch((error: unknown) => {
  post({ kind: 'failed', error: failureOf(error) });
});
