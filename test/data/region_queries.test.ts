import { labelSpace, regionQueries } from '../../lib/data/region_queries';
import { RegionDetections } from '../../lib/data/region_detections';

describe('regionQueries', () => {
  test('n-grams by first word, without generic words and stop-words alone', () => {
    expect(regionQueries('Stock  PHOTO of a red car')).toEqual([
      'of a red',
      'of a red car',
      'a red',
      'a red car',
      'red',
      'red car',
      'car',
    ]);
    expect(regionQueries('free www image of the')).toEqual([]);
    expect(regionQueries('')).toEqual([]);
  });

  test('no n-gram is longer than ten words, each is there once, at most 300', () => {
    const words = Array.from({ length: 40 }, (_, i) => `w${String(i)}`);
    const queries = regionQueries(words.join(' '));
    expect(queries).toHaveLength(300);
    expect(Math.max(...queries.map((query) => query.split(' ').length))).toBe(10);
    // Ten per first word.
    expect(queries[10]).toBe('w1');
    expect(regionQueries('cat cat')).toEqual(['cat', 'cat cat']);
    expect(regionQueries('a b c', { longest: 2, most: 2 })).toEqual(['a b', 'b']);
  });

  test('punctuation stays unless asked for', () => {
    expect(regionQueries('cat, photo.')).toEqual(['cat,', 'cat, photo.', 'photo.']);
    expect(regionQueries('cat, photo.', { punctuation: 'strip' })).toEqual(['cat']);
  });

  test('numbers outside their domain are errors', () => {
    expect(() => regionQueries('a', { most: 0 })).toThrow(/most must be a positive integer, got 0/);
  });
});

test('a label space has every name once, and no plurals', () => {
  expect(
    labelSpace(['Cat', 'cats', 'traffic_light', ' bus ', 'buses', 'glass', 'cat', '']),
  ).toEqual(['cat', 'traffic light', 'bus', 'glass']);
});

describe('RegionDetections', () => {
  const box = [0, 0, 0.5, 0.5];
  const other = [0.5, 0.5, 1, 1];

  test('the best query of a box; boxes from 0.1; images with one above 0.3', () => {
    const detections = new RegionDetections();
    detections.add({ image: 'a', query: 'cat', boxes: [box, other], scores: [0.4, 0.1] });
    detections.add({ image: 'b', query: 'cat', boxes: [box], scores: [0.3] });
    detections.add({ image: 'a', query: ['dog', 'hat'], boxes: [box, other], scores: [0.6, 0.09] });
    expect(detections.regions('a')).toEqual([
      { box, text: 'dog' },
      { box: other, text: 'cat' },
    ]);
    expect(detections.regions('b')).toEqual([]);
    expect(detections.regions('c')).toEqual([]);
  });

  test('scores of the label space are worth three tenths where both are pooled', () => {
    const lines = [
      { image: 'a', query: 'sofa', boxes: [box], scores: [0.9], space: 'labels' },
      { image: 'a', query: 'red sofa', boxes: [box], scores: [0.28] },
      { image: 'a', query: 'cat', boxes: [other], scores: [0.31] },
    ];
    const texts = (filter: object): string[] => {
      const detections = new RegionDetections(filter);
      for (const line of lines) detections.add(line);
      return detections.regions('a').map(({ text }) => text);
    };
    expect(texts({})).toEqual(['cat', 'red sofa']);
    expect(texts({ labelFactor: 1 })).toEqual(['sofa', 'cat']);
    expect(texts({ minImageScore: 0.5 })).toEqual([]);
  });

  test('lines and numbers that make no sense are errors', () => {
    const detections = new RegionDetections();
    const add = (line: object): (() => void) => {
      return () => {
        detections.add({ image: 'a', query: 'x', boxes: [box], scores: [1], ...line }, 'line 3');
      };
    };
    expect(add({ scores: [1, 2] })).toThrow('line 3: scores must be 1, one per box, got 2');
    expect(add({ query: ['x', 'y'] })).toThrow('line 3: query must be 1, one per box, got 2');
    expect(add({ boxes: [[0, 1]] })).toThrow(/line 3: boxes.0/);
    expect(add({ image: 5 })).toThrow('line 3: image must be the id of an image, got 5');
    expect(() => new RegionDetections({ minScore: 2 })).toThrow(
      /minScore must be from 0 to 1, got 2/,
    );
  });
});
