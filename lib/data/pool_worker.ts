// A thread of `WorkerPool`: does the tasks that it is sent.
import { createRequire } from 'node:module';
import { parentPort, workerData } from 'node:worker_threads';
import { threadErrorOf, transferable } from './thread_messages';
import type { PoolReply, PoolRequest, PoolWorkerData } from './worker_pool';

const port = parentPort;
if (port === null) throw new Error('pool_worker: must run on a worker thread');

const data = workerData as PoolWorkerData;
const exported = createRequire(__filename)(data.module) as Record<string, unknown>;
const handle = exported[data.handler] as (task: unknown) => unknown;
if (typeof handle !== 'function') {
  throw new Error(`${data.module} must export the function ${data.handler}, got ${typeof handle}`);
}

async function answer({ id, task }: PoolRequest): Promise<void> {
  let reply: PoolReply;
  try {
    reply = { kind: 'result', id, result: await handle(task) };
  } catch (error) {
    reply = { kind: 'error', id, error: threadErrorOf(error) };
  }
  port?.postMessage(reply, reply.kind === 'result' ? transferable(reply.result) : []);
}

port.on('message', (request: PoolRequest) => {
  void answer(request);
});
port.postMessage({ kind: 'ready' } satisfies PoolReply);
