import { mapAhead } from '../../lib/corpus/ahead';

async function* numbers(count: number, onRead: (n: number) => void = () => undefined) {
  for (let n = 0; n < count; n++) {
    onRead(n);
    yield await Promise.resolve(n);
  }
}

const pause = (turns: number): Promise<void> =>
  turns === 0
    ? Promise.resolve()
    : new Promise((resolve) => {
        setImmediate(() => void pause(turns - 1).then(resolve));
      });

test.each([
  [1, 1],
  [3, 5],
  [8, 8],
  [4, 100],
])('order is that of the sequence, %d at a time, %d ahead', async (concurrency, ahead) => {
  const results: number[] = [];
  const work = async (n: number): Promise<number> => {
    await pause((n * 7) % 5);
    return n * n;
  };
  for await (const result of mapAhead(numbers(40), work, { concurrency, ahead })) {
    results.push(result);
  }
  expect(results).toEqual(Array.from({ length: 40 }, (_, n) => n * n));
});

test('no more runs at once, and no more waits, than allowed', async () => {
  let [running, most, read, taken] = [0, 0, 0, 0];
  const work = async (n: number): Promise<number> => {
    most = Math.max(most, ++running);
    await pause(n % 3);
    running--;
    return n;
  };
  const counted = numbers(60, () => read++);
  for await (const n of mapAhead(counted, work, { concurrency: 3, ahead: 7 })) {
    await pause(2);
    expect(n).toBe(taken++);
    expect(read - taken).toBeLessThanOrEqual(7);
  }
  expect(most).toBe(3);
  expect(taken).toBe(60);
});

test('work goes on while the reader is busy', async () => {
  let started = 0;
  const work = (n: number): Promise<number> => {
    started++;
    return Promise.resolve(n);
  };
  const results = mapAhead(numbers(50), work, { concurrency: 2, ahead: 10 });
  await results.next();
  await pause(50);
  expect(started).toBe(11);
  await results.return();
});

test('an error arrives at its place, after the results before it', async () => {
  const seen: number[] = [];
  const work = (n: number): Promise<number> =>
    n === 4 ? Promise.reject(new Error('four')) : Promise.resolve(n);
  await expect(async () => {
    for await (const n of mapAhead(numbers(9), work, { concurrency: 4, ahead: 8 })) seen.push(n);
  }).rejects.toThrow('four');
  expect(seen).toEqual([0, 1, 2, 3]);
});

test('an error of the sequence comes after what it gave', async () => {
  async function* failing() {
    yield* numbers(3);
    throw new Error('torn');
  }
  const seen: number[] = [];
  const work = (n: number): Promise<number> => Promise.resolve(n);
  await expect(async () => {
    for await (const n of mapAhead(failing(), work, { concurrency: 2, ahead: 4 })) seen.push(n);
  }).rejects.toThrow('torn');
  expect(seen).toEqual([0, 1, 2]);
});

test('a reader that stops closes the sequence', async () => {
  let closed = false;
  async function* endless() {
    try {
      for (let n = 0; ; n++) yield await Promise.resolve(n);
    } finally {
      closed = true;
    }
  }
  const work = (n: number): Promise<number> => Promise.resolve(n);
  for await (const n of mapAhead(endless(), work, { concurrency: 2, ahead: 4 })) {
    if (n === 5) break;
  }
  expect(closed).toBe(true);
});
