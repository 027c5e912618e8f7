import { owns, parseShard } from '../../lib/bulk';

test.each([
  ['1/3', { index: 0, count: 3 }],
  ['3/3', { index: 2, count: 3 }],
  ['1/1', { index: 0, count: 1 }],
])('%s', (text, shard) => {
  expect(parseShard(text, {})).toEqual(shard);
});

test.each(['0/3', '4/3', '1', '1/0', 'a/b', '-1/2', '1/2/3', '1/9999999999'])(
  '%s is none',
  (text) => {
    expect(() => parseShard(text, {})).toThrow(/--shard must be i\/n/);
  },
);

describe('auto', () => {
  test.each([
    ['a Slurm step', { SLURM_PROCID: '2', SLURM_NTASKS: '4' }, { index: 2, count: 4 }],
    [
      'a Slurm array',
      {
        SLURM_ARRAY_TASK_ID: '7',
        SLURM_ARRAY_TASK_MIN: '5',
        SLURM_ARRAY_TASK_STEP: '2',
        SLURM_ARRAY_TASK_COUNT: '3',
      },
      { index: 1, count: 3 },
    ],
    [
      'a step within an array',
      {
        SLURM_ARRAY_TASK_ID: '1',
        SLURM_ARRAY_TASK_MIN: '0',
        SLURM_ARRAY_TASK_COUNT: '2',
        SLURM_PROCID: '3',
        SLURM_NTASKS: '4',
      },
      { index: 7, count: 8 },
    ],
    [
      'an indexed job of Kubernetes',
      { JOB_COMPLETION_INDEX: '1', JOB_COMPLETIONS: '5' },
      { index: 1, count: 5 },
    ],
  ])('%s', (_, environment, shard) => {
    expect(parseShard('auto', environment)).toEqual(shard);
  });

  test('the number of completions may be an option', () => {
    expect(parseShard('auto', { JOB_COMPLETION_INDEX: '1' }, 2)).toEqual({ index: 1, count: 2 });
  });

  test.each([
    ['nothing to go by', {}, /got none of them/],
    ['no number of completions', { JOB_COMPLETION_INDEX: '0' }, /--shards <n>/],
    ['an index beyond', { JOB_COMPLETION_INDEX: '2', JOB_COMPLETIONS: '2' }, /--shard must be/],
    ['no number', { SLURM_PROCID: 'x', SLURM_NTASKS: '2' }, /SLURM_PROCID must be a whole/],
    [
      'an array with holes',
      { SLURM_ARRAY_TASK_ID: '9', SLURM_ARRAY_TASK_MIN: '1', SLURM_ARRAY_TASK_COUNT: '3' },
      /--shard must be/,
    ],
  ])('%s is refused', (_, environment, message) => {
    expect(() => parseShard('auto', environment)).toThrow(message);
  });
});

test.each([
  [1, 3],
  [2, 5],
  [7, 3],
  [3, 3],
])('every part of %d sources has one owner among %d shards', (sources, count) => {
  for (let source = 0; source < sources; source++) {
    for (let block = 0; block < 20; block++) {
      const owners = Array.from({ length: count }, (_, index) => index).filter((index) =>
        owns({ index, count }, sources, source, block),
      );
      expect(owners).toHaveLength(1);
    }
  }
});

test('as many sources as shards: each is read by one shard alone', () => {
  for (let block = 0; block < 9; block++) {
    expect(owns({ index: 1, count: 3 }, 4, 1, block)).toBe(true);
    expect(owns({ index: 2, count: 3 }, 4, 1, block)).toBe(false);
  }
});
