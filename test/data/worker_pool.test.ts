import { join } from 'node:path';
import { WorkerPool, type WorkerPoolOptions } from '../../lib/data/worker_pool';

const execArgv = ['--require', join(__dirname, '..', 'typescript.js')];

interface Task {
  readonly number: number;
  readonly wait?: number;
  readonly fatal?: Int32Array;
  readonly hungry?: Int32Array;
  readonly fail?: string;
}

interface Answer {
  readonly number: number;
  readonly threadId: number;
}

const pools: WorkerPool<Task, Answer>[] = [];
let lost: string[] = [];

function open(options: Partial<WorkerPoolOptions> = {}): WorkerPool<Task, Answer> {
  lost = [];
  const pool = new WorkerPool<Task, Answer>({
    module: join(__dirname, 'pool_handlers.js'),
    handler: 'twice',
    workers: 2,
    execArgv,
    onLost: (worker, reason) => {
      lost.push(`${worker}: ${reason}`);
    },
    ...options,
  });
  pools.push(pool);
  return pool;
}

afterEach(async () => {
  await Promise.all(pools.splice(0).map((pool) => pool.close()));
});

const times = (count: number): Int32Array => {
  const counter = new Int32Array(new SharedArrayBuffer(4));
  counter[0] = count;
  return counter;
};

const numbers = Array.from({ length: 20 }, (_, number) => number);

test('every task has its result, and all threads work', async () => {
  const pool = open();
  const answers = await Promise.all(
    numbers.map((number) => pool.run({ number, wait: number % 3 })),
  );
  expect(answers.map(({ number }) => number)).toEqual(numbers.map((number) => 2 * number));
  expect(new Set(answers.map(({ threadId }) => threadId)).size).toBe(2);
  expect(lost).toEqual([]);
});

test('a thread that ends is named and replaced, and no task is lost', async () => {
  const pool = open();
  const fatal = times(2);
  const answers = await Promise.all(
    numbers.map((number) => pool.run({ number, wait: 1, ...(number === 7 ? { fatal } : {}) })),
  );
  expect(answers.map(({ number }) => number)).toEqual(numbers.map((number) => 2 * number));
  expect(lost).toHaveLength(2);
  expect(lost[0]).toMatch(/^twice \d+: the thread ended with code 7$/);
});

test('a task that threads die of is given up, the ones beside it are not', async () => {
  const pool = open();
  const fatal = times(100);
  const results = await Promise.allSettled(
    numbers.map((number) => pool.run({ number, ...(number === 3 ? { fatal } : {}) })),
  );
  expect(results.map(({ status }) => status)).toEqual(
    numbers.map((number) => (number === 3 ? 'rejected' : 'fulfilled')),
  );
  expect(results[3]).toMatchObject({
    reason: {
      code: 'ERR_DATA',
      message:
        'WorkerPool: a task must leave its worker alive, got 3 that ended: the thread ended with code 7',
    },
  });
  expect(lost).toHaveLength(3);
});

test('a thread without memory is one that ends', async () => {
  const pool = open({ workers: 1, heapMegabytes: 32 });
  const hungry = times(1);
  expect((await pool.run({ number: 4, hungry })).number).toBe(8);
  expect(lost).toEqual([expect.stringMatching(/^twice 1: .*memory limit/)]);
});

test('an error of the handler is that of the task alone', async () => {
  const pool = open();
  const failing = pool.run({ number: 1, fail: 'torn' });
  await expect(failing).rejects.toMatchObject({
    code: 'ERR_IMAGE',
    message: expect.stringMatching(/^worker twice \d: torn$/) as string,
  });
  expect((await pool.run({ number: 2 })).number).toBe(4);
});

test('threads that cannot start end the pool', async () => {
  const pool = open({ handler: 'nobody' });
  await expect(pool.run({ number: 1 })).rejects.toThrow(
    /worker nobody \d+ must start, got: .* must export the function nobody, got undefined/,
  );
});

test('close rejects what waits and what comes later', async () => {
  const pool = open();
  const pending = expect(pool.run({ number: 1, wait: 10_000 })).rejects.toMatchObject({
    code: 'ERR_DISPOSED',
  });
  await pool.close();
  await pending;
  await expect(pool.run({ number: 1 })).rejects.toMatchObject({ code: 'ERR_DISPOSED' });
  expect(lost).toEqual([]);
  expect(() => open({ workers: 0 })).toThrow(/workers must be a positive integer, got 0/);
});
