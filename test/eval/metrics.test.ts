import { Philox4x32 } from '../../lib/array/random';
import { pixelNeighbour } from '../../lib/eval/pixel_neighbour';
import { meanProportion, wilson } from '../../lib/eval/proportion';
import { retrieval } from '../../lib/eval/retrieval';
import { forEachScores, rankOf, type Rows } from '../../lib/eval/scores';
import { classEmbeddings, zeroShot } from '../../lib/eval/zero_shot';

function randomRows(count: number, width: number, seed: number): Rows {
  const data = new Float32Array(count * width);
  new Philox4x32(seed).fillNormal(data, 1);
  return { data, width };
}

/** Rows 0 … count − 1 of the identity. */
function unitRows(count: number, width = count): Rows {
  const data = new Float32Array(count * width);
  for (let i = 0; i < count; i++) data[i * width + i] = 1;
  return { data, width };
}

describe('forEachScores', () => {
  test.each([
    [1, 1, 1],
    [3, 5, 7],
    [33, 67, 16],
    [70, 130, 5],
  ])('%i queries against %i candidates of width %i, every block border', (n, m, width) => {
    const [queries, candidates] = [randomRows(n, width, 1), randomRows(m, width, 2)];
    let visited = 0;
    forEachScores(queries, candidates, (query, scores) => {
      expect(query).toBe(visited++);
      expect(scores.length).toBe(m);
      for (let c = 0; c < m; c++) {
        let sum = 0;
        for (let i = 0; i < width; i++) {
          sum += queries.data[query * width + i] * candidates.data[c * width + i];
        }
        expect(scores[c]).toBe(sum);
      }
    });
    expect(visited).toBe(n);
  });

  test('widths that differ are refused', () => {
    expect(() => {
      forEachScores(randomRows(2, 3, 0), randomRows(2, 4, 0), () => undefined);
    }).toThrow('scores: candidates must have the width 3, got 4');
    expect(() => {
      forEachScores({ data: new Float32Array(5), width: 2 }, randomRows(2, 2, 0), () => undefined);
    }).toThrow(expect.objectContaining({ code: 'ERR_SHAPE' }) as Error);
  });

  test('ties are ranked by index', () => {
    expect([0, 1, 2, 3].map((i) => rankOf([1, 2, 2, 0], i))).toEqual([2, 0, 1, 3]);
  });
});

describe('wilson', () => {
  test('matches the published example and stays inside [0, 1]', () => {
    // 81 of 263, Newcombe (1998), table I: 0.2553 to 0.3662
    const { value, low, high } = wilson(81, 263);
    expect(value).toBeCloseTo(0.308, 4);
    expect(low).toBeCloseTo(0.2553, 4);
    expect(high).toBeCloseTo(0.3662, 4);
    // 0 of 20: 0 to 0.1611
    expect(wilson(0, 20).low).toBe(0);
    expect(wilson(0, 20).high).toBeCloseTo(0.1611, 4);
    expect(wilson(20, 20).high).toBe(1);
    expect(wilson(0, 0)).toEqual({ value: 0, low: 0, high: 1, count: 0, total: 0 });
    expect(() => wilson(3, 2)).toThrow(expect.objectContaining({ code: 'ERR_ARGUMENT' }) as Error);
  });
});

describe('meanProportion', () => {
  test('one share has about the interval of its own proportion', () => {
    const hits = Int8Array.from({ length: 400 }, (_, i) => (i % 4 === 0 ? 1 : 0));
    const { value, low, high } = meanProportion([hits]);
    expect(value).toBe(0.25);
    expect(low).toBeCloseTo(wilson(100, 400).low, 1);
    expect(high).toBeCloseTo(wilson(100, 400).high, 1);
    // The same answers in five languages tell no more than in one.
    const five = meanProportion([hits, hits, hits, hits, hits]);
    expect(five.value).toBeCloseTo(value, 12);
    expect(five.low).toBeCloseTo(low, 12);
    expect(five.high).toBeCloseTo(high, 12);
  });

  test('items that were not asked are left out; shares must be over the same items', () => {
    expect(meanProportion([Int8Array.of(1, -1, 1), Int8Array.of(0, 0, 1)]).value).toBeCloseTo(
      2 / 3,
    );
    expect(meanProportion([]).value).toBe(0);
    expect(() => meanProportion([new Int8Array(2), new Int8Array(3)])).toThrow(
      expect.objectContaining({ code: 'ERR_SHAPE' }) as Error,
    );
  });
});

describe('zeroShot', () => {
  test('counts the best and the five best, chance, and names the mistakes', () => {
    // Image i points at class i, but image 3 at class 4.
    const images = unitRows(8);
    images.data.set([0, 0, 0, 0.5, 1, 0, 0, 0], 3 * 8);
    const labels = Int32Array.from({ length: 8 }, (_, i) => i);
    labels[7] = -1;
    const result = zeroShot(images, unitRows(8), labels);
    expect([result.top1.count, result.top1.total, result.top5.count]).toEqual([6, 7, 7]);
    expect(result.chance).toBeCloseTo(1 / 8);
    expect(result.confusions).toEqual([{ label: 3, predicted: 4, count: 1 }]);
    expect([...result.hits]).toEqual([1, 1, 1, 0, 1, 1, 1, -1]);
    expect([...result.predictions]).toEqual([0, 1, 2, 4, 4, 5, 6, 7]);
  });

  test('refuses labels that do not fit, and classes without a prompt', () => {
    const rows = unitRows(3);
    expect(() => zeroShot(rows, rows, Int32Array.of(0, 1))).toThrow(
      expect.objectContaining({ code: 'ERR_SHAPE' }) as Error,
    );
    expect(() => zeroShot(rows, rows, Int32Array.of(0, 1, 3))).toThrow(
      'zeroShot: labels must be from -1 to 2, got 3',
    );
    expect(() => classEmbeddings(rows, Int32Array.of(0, 0, 2), 3)).toThrow(
      'classEmbeddings: class 1 must have a prompt, got none',
    );
  });
});

describe('retrieval', () => {
  test('several positives: the best one counts; queries without any do not', () => {
    const images = unitRows(3, 4);
    const texts: Rows = { data: new Float32Array(4 * 4), width: 4 };
    texts.data.set([1, 0, 0, 0, 0.9, 0.2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 1]);
    const result = retrieval(images, texts, Int32Array.of(7, 8, 9), Int32Array.of(7, 7, 8, 5));
    expect([result.imageToText.at1.count, result.imageToText.at1.total]).toEqual([2, 2]);
    expect([result.textToImage.at1.count, result.textToImage.at1.total]).toEqual([3, 3]);
    expect(result.imageToText.chance).toBeCloseTo((2 / 4 + 1 / 4) / 2);
    expect(result.textToImage.candidates).toBe(3);
  });

  test('1,592 against 1,592 at width 128 takes seconds at most', () => {
    const rows = randomRows(1592, 128, 3);
    const own = Int32Array.from({ length: 1592 }, (_, i) => i);
    const start = process.cpuUsage().user;
    expect(retrieval(rows, rows, own, own).textToImage.at1.value).toBe(1);
    expect((process.cpuUsage().user - start) / 1e6).toBeLessThan(10);
  });
});

describe('pixelNeighbour', () => {
  test('finds the same drawing, brighter or darker', () => {
    const gallery = new Uint8Array(3 * 12);
    for (let i = 0; i < gallery.length; i++) gallery[i] = (i * i * 7 + 13 * i) % 100;
    const images = gallery.map((value) => value + 80);
    const labels = Int32Array.of(0, 1, 2);
    const { top1, top5 } = pixelNeighbour(images, labels, gallery, labels, 2);
    expect([top1.value, top5.value]).toEqual([1, 1]);
    expect(pixelNeighbour(images, Int32Array.of(1, 2, 0), gallery, labels, 2).top1.value).toBe(0);
    expect(() => pixelNeighbour(images, labels, gallery, labels, 3)).toThrow(
      expect.objectContaining({ code: 'ERR_SHAPE' }) as Error,
    );
  });
});
