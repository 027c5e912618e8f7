// The worker thread of `Prefetch`: makes values of one stream as long as it has credits.
import { createRequire } from 'node:module';
import { parentPort, workerData, type Transferable } from 'node:worker_threads';
import type { PrefetchReply, PrefetchRequest, PrefetchWorkerData } from './prefetch';
import type { Stream } from './stream';
import { threadErrorOf, transferable } from './thread_messages';

type Factory = (input: unknown) => Stream<unknown> | Promise<Stream<unknown>>;

const port = parentPort;
if (port === null) throw new Error('prefetch_worker: must run on a worker thread');

function post(reply: PrefetchReply, transfer: readonly Transferable[] = []): void {
  port?.postMessage(reply, transfer);
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
      post({ kind: 'failed', error: threadErrorOf(error) });
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
            post({ kind: 'rejected', generation: request.generation, error: threadErrorOf(error) });
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
  post({ kind: 'failed', error: threadErrorOf(error) });
});
