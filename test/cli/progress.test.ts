// The live line where the end is not known, or only about.
import { PassThrough } from 'node:stream';
import type { ProgressOptions } from '../../lib/cli/progress';
import { Progress } from '../../lib/cli/progress';

const clock = jest.spyOn(performance, 'now');

afterAll(() => {
  clock.mockRestore();
});

function at(seconds: number): void {
  clock.mockReturnValue(1000 * seconds);
}

function line(options: Omit<ProgressOptions, 'unit' | 'stream'>): {
  readonly progress: Progress;
  readonly read: () => string;
} {
  const stream = Object.assign(new PassThrough({ encoding: 'utf8' }), { isTTY: true });
  at(0);
  const progress = new Progress({ unit: 'rows', ...options, stream });
  return { progress, read: () => String(stream.read()) };
}

test('no total: count and rate, until somebody knows', () => {
  const { progress, read } = line({ total: undefined, from: 100 });
  at(2);
  progress.update(300, '1 failed');
  expect(read()).toBe('\r300 rows  100/s  1 failed');
  at(4);
  progress.setTotal(1100, true);
  progress.update(500);
  expect(read()).toMatch(/^\r█+░+ 45% 500\/~1100 rows {2}100\/s {2}left 0:06$/u);
});

test('an estimate that is reached is not the end; finish() is', () => {
  const { progress, read } = line({ total: 10 });
  at(1);
  progress.setTotal(10, true);
  progress.update(10);
  expect(read()).toMatch(/100% 10\/~10 rows {2}10\.0\/s {2}left 0:00$/u);
  at(2);
  progress.finish(12);
  expect(read()).toMatch(/100% 12\/12 rows {2}6\.00\/s {2}took 0:02 *\n$/u);
});

test('a finished line is not finished again', () => {
  const { progress, read } = line({ total: 3 });
  at(1);
  progress.update(3);
  expect(read()).toMatch(/took 0:01\n$/u);
  progress.finish(3);
  expect(read()).toBe('null');
});

test.each([
  [999, '999/s'],
  [1000, '1000/s'],
  [123_456, '123456/s'],
])('%d a second', (done, text) => {
  const { progress, read } = line({ total: undefined });
  at(1);
  progress.update(done);
  expect(read()).toContain(`  ${text}`);
});
