import { ConceptSampler } from '../../lib/data/sampler';

describe('ConceptSampler', () => {
  test('no batch holds a concept twice, and every example comes equally often', () => {
    const concepts = Int32Array.from({ length: 30 }, (_, i) => i % 10);
    const sampler = new ConceptSampler(concepts, 8, 1);
    const times = new Int32Array(30);
    for (let batch = 0; batch < 150; batch++) {
      const indices = sampler.next();
      expect(new Set([...indices].map((index) => concepts[index])).size).toBe(8);
      for (const index of indices) times[index]++;
    }
    // 1,200 draws over 30 examples: 40 each, but for those that wait
    expect(Math.min(...times)).toBeGreaterThanOrEqual(38);
    expect(Math.max(...times)).toBeLessThanOrEqual(42);
  });

  test('with distinct concepts an epoch is a permutation', () => {
    const sampler = new ConceptSampler(
      Int32Array.from({ length: 12 }, (_, i) => i),
      4,
      7,
    );
    const epoch = (): number[] =>
      [sampler.next(), sampler.next(), sampler.next()].flatMap((b) => [...b]);
    const [first, second] = [epoch(), epoch()];
    const all = [...Array(12).keys()];
    expect([...first].sort((a, b) => a - b)).toEqual(all);
    expect([...second].sort((a, b) => a - b)).toEqual(all);
    expect(first).not.toEqual(all);
    expect(second).not.toEqual(first);
  });

  test('is a function of the seed, and continues from a state', () => {
    const concepts = Int32Array.from({ length: 50 }, (_, i) => i % 17);
    const take = (sampler: ConceptSampler): number[][] =>
      Array.from({ length: 9 }, () => [...sampler.next()]);
    const sampler = new ConceptSampler(concepts, 16, 3);
    expect(take(new ConceptSampler(concepts, 16, 3))).toEqual(take(sampler));
    const state = JSON.parse(JSON.stringify(sampler.state())) as ReturnType<typeof sampler.state>;
    const other = new ConceptSampler(concepts, 16, 3);
    other.restore(state);
    expect(take(other)).toEqual(take(sampler));
    expect(take(new ConceptSampler(concepts, 16, 4))).not.toEqual(
      take(new ConceptSampler(concepts, 16, 3)),
    );
  });

  test('the queue stays short when one concept has most examples', () => {
    const concepts = Int32Array.from({ length: 100 }, (_, i) => Math.max(0, i - 80));
    const sampler = new ConceptSampler(concepts, 10, 0);
    for (let batch = 0; batch < 500; batch++) sampler.next();
    expect(sampler.state().deferred.length).toBeLessThan(100);
    expect(new Set(sampler.state().deferred).size).toBe(sampler.state().deferred.length);
  });

  test('a batch larger than the number of concepts takes each at most as often as allowed', () => {
    const concepts = Int32Array.of(0, 0, 0, 1, 1, 2);
    const sampler = new ConceptSampler(concepts, 6, 1, 2);
    for (let batch = 0; batch < 20; batch++) {
      const taken = [...sampler.next()].map((index) => concepts[index]);
      expect(taken.sort()).toEqual([0, 0, 1, 1, 2, 2]);
    }
    const state = sampler.state();
    const next = sampler.next();
    const other = new ConceptSampler(concepts, 6, 1, 2);
    other.restore(state);
    expect(other.next()).toEqual(next);
    expect(() => new ConceptSampler(concepts, 7, 1, 2)).toThrow(
      'ConceptSampler: batch must be an integer from 1 to the number of concepts 3 times 2, got 7',
    );
  });

  test('refuses a batch larger than the number of concepts, and foreign states', () => {
    expect(() => new ConceptSampler(Int32Array.of(0, 0, 1), 3, 0)).toThrow(
      'ConceptSampler: batch must be an integer from 1 to the number of concepts 2, got 3',
    );
    const sampler = new ConceptSampler(Int32Array.of(0, 1), 1, 0);
    for (const state of [
      { epoch: -1, position: 0, deferred: [] },
      { epoch: 0, position: 3, deferred: [] },
      { epoch: 0, position: 0, deferred: [2] },
      {},
    ]) {
      expect(() => {
        sampler.restore(state as ReturnType<typeof sampler.state>);
      }).toThrow(expect.objectContaining({ code: 'ERR_DATA' }) as Error);
    }
  });
});
