import type { Measured } from '../../bench/measure';
import type { Results, Row } from '../../bench/rows';
import { pageOf, regressions, speedRow } from '../../bench/rows';

const row = (name: string, ratio: number, ours: number): Row => ({
  name,
  peerName: 'peer',
  ours,
  peer: ours / ratio,
  ratio,
  unit: 'images/s',
});

describe('regressions', () => {
  test('compares ratios, not times', () => {
    expect(regressions([row('a', 1.5, 30)], [row('a', 1.5, 3)], 0.1)).toEqual([]);
  });

  test('names what fell by more than the tolerance, and nothing else', () => {
    const before = [row('a', 2, 1), row('b', 2, 1), row('gone', 2, 1)];
    const now = [row('a', 1.81, 1), row('b', 1.79, 1), row('new', 0.1, 1)];
    expect(regressions(before, now, 0.1)).toEqual(['b vs peer: ratio 1.79, was 2']);
  });

  test('does not judge a row that no sound round stands behind', () => {
    const now = { ...row('a', 1, 1), rounds: 0, rejected: 9 };
    expect(regressions([row('a', 2, 1)], [now], 0.1)).toEqual([]);
    expect(regressions([row('a', 2, 1)], [{ ...now, rounds: 1 }], 0.1)).toHaveLength(1);
  });
});

test('a row of speed counts items and takes the ratio of paired rounds', () => {
  const measured: Measured = {
    seconds: new Map([
      ['ours', 0.5],
      ['theirs', 0.8],
    ]),
    ratios: new Map([
      ['ours', 1],
      ['theirs', 1.75],
    ]),
    rounds: 5,
    rejected: 2,
    peak: 1,
  };
  expect(speedRow('x', ['ours', 'theirs'], 'Theirs', measured, 8, 'images/s')).toEqual({
    name: 'x',
    peerName: 'Theirs',
    ours: 16,
    peer: 10,
    ratio: 1.75,
    unit: 'images/s',
    rounds: 5,
    rejected: 2,
  });
});

test('the page has a line for every row and says what was not measured', () => {
  const results: Results = {
    machine: { processor: 'P' },
    forms: { int8: 'as-exported' },
    rows: [row('vision', 1.25, 5)],
    accuracy: [],
    linearShares: [],
    skipped: [{ name: 'PyTorch', reason: 'no Python' }],
  };
  const page = pageOf(results);
  expect(page).toContain('| vision | peer | 5.00 | 4.00 | images/s | 1.25× |');
  expect(page).toContain('| PyTorch | no Python |');
  expect(page).not.toContain('## Accuracy');
});
