// Started by process.test.ts in a process of its own: what becomes of a process and its workers.
import { createHash } from 'node:crypto';
import { parentPort, Worker, workerData } from 'node:worker_threads';
import { Embedder } from '../../lib';
import { ids, image } from './random_model';

interface Task {
  readonly folder: string;
  readonly role: 'digest' | 'flood';
}

function load(folder: string): Promise<Embedder> {
  return Embedder.load(folder, { maxBatch: 4 });
}

async function digest(folder: string): Promise<string> {
  await using embedder = await load(folder);
  const vectors = await Promise.all([
    ...[1, 2, 3].map((seed) => embedder.embedImage(image(seed))),
    ...[1, 2, 3].map((seed) => embedder.embedText(ids(seed))),
  ]);
  const hash = createHash('sha256');
  for (const vector of vectors) hash.update(new Uint8Array(vector.buffer));
  return hash.digest('hex');
}

// Enough that the end comes in the middle of it.
async function flood(folder: string, begun: () => void): Promise<void> {
  const embedder = await load(folder);
  const inputs = Array.from({ length: 20_000 }, () => image(1));
  const calls = embedder.embedImages(inputs);
  await embedder.embedText(ids(1));
  begun();
  await calls;
}

function start(task: Task): Worker {
  return new Worker(`require(${JSON.stringify(__filename)})`, { eval: true, workerData: task });
}

const print = (line: string): void => void process.stdout.write(`${line}\n`);

const answerOf = (worker: Worker): Promise<unknown> =>
  new Promise((resolve, reject) => {
    worker.once('message', resolve);
    worker.once('error', reject);
  });

const roles: Readonly<Record<string, (folder: string) => Promise<void>>> = {
  closed: async (folder) => {
    const embedder = await load(folder);
    await embedder.embedText(ids(1));
    await embedder.close();
    print('done');
  },
  open: async (folder) => {
    const embedder = await load(folder);
    await Promise.all([embedder.embedText(ids(1)), embedder.embedImage(image(1))]);
    (globalThis as { kept?: Embedder }).kept = embedder;
    print('done');
  },
  exit: (folder) => flood(folder, () => process.exit(7)),
  workers: async (folder) => {
    const workers = [0, 1, 2].map(() => start({ folder, role: 'digest' }));
    const answers = await Promise.all([digest(folder), ...workers.map(answerOf)]);
    print(`${String(new Set(answers).size)} of ${String(answers.length)}`);
  },
  terminated: async (folder) => {
    const before = await digest(folder);
    for (let i = 0; i < 3; i++) {
      const worker = start({ folder, role: 'flood' });
      await answerOf(worker);
      await worker.terminate();
    }
    print(String((await digest(folder)) === before));
  },
};

async function work({ folder, role }: Task): Promise<void> {
  const post = (message: string): void => parentPort?.postMessage(message);
  if (role === 'digest') post(await digest(folder));
  else {
    await flood(folder, () => {
      post('begun');
    });
  }
}

if (parentPort === null) void roles[process.argv[2]](process.argv[3]);
else void work(workerData as Task);
