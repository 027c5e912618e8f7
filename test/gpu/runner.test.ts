// The tools of the tests and the benchmark of GPUs, tried where there is none.
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { figureOf, gpuRows } from '../../bench/gpu_rows';
import { JsonChild } from '../../bench/json_child';
import { ndArray } from '../reference/nd_array';
import { expectBfloat16 } from './bar';
import type { TestRecord } from './runner';
import { mustEqualBits, Runner } from './runner';

let folder = '';

beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'siglip2-runner-'));
});

afterAll(() => {
  rmSync(folder, { recursive: true, force: true });
});

describe('Runner', () => {
  async function run(
    declare: (runner: Runner) => void,
    missing?: string,
  ): Promise<{ passed: boolean; records: TestRecord[]; output: string }> {
    const runner = new Runner(missing);
    declare(runner);
    const json = join(folder, 'records.json');
    let output = '';
    const write = jest.spyOn(process.stdout, 'write').mockImplementation((text) => {
      output += String(text);
      return true;
    });
    const options = { words: [], timeout: 0.05, limit: 10, json, verbose: false };
    const passed = await runner.run(options, {});
    write.mockRestore();
    const { records } = JSON.parse(readFileSync(json, 'utf8')) as { records: TestRecord[] };
    return { passed, records, output };
  }

  function declareAll(runner: Runner): void {
    const group = runner.group('group');
    group.test('good', () => ({ share: 0.5 }));
    group.test('bad', () => {
      throw new Error('must be 1, got 2');
    });
    group.test('slow', () => new Promise<void>(() => undefined));
    group.skip('absent', 'not here');
  }

  test('counts, says why, and goes on', async () => {
    const { passed, records, output } = await run(declareAll);
    expect(passed).toBe(false);
    expect(records.map(({ outcome }) => outcome)).toEqual([
      'passed',
      'failed',
      'failed',
      'skipped',
    ]);
    expect(records[0].figures).toEqual({ share: 0.5 });
    expect(output).toContain('FAILED  group: bad: must be 1, got 2');
    expect(output.trim().split('\n').pop()).toBe('1 passed, 2 failed, 1 skipped');
  });

  test('without a device everything is skipped, with the reason', async () => {
    const { passed, records, output } = await run(declareAll, 'no device');
    expect(passed).toBe(true);
    expect(records.every(({ outcome }) => outcome === 'skipped')).toBe(true);
    expect(output.trim().split('\n').pop()).toBe('0 passed, 0 failed, 4 skipped');
  });

  test('bits are compared, not values', () => {
    expect(() => {
      mustEqualBits('again', { y: [0] }, { y: [-0] });
    }).toThrow(/y\[0\] must be 0 again/);
    mustEqualBits('again', { y: [NaN] }, { y: [NaN] });
  });
});

describe('the bar of bfloat16', () => {
  const exact = ndArray([4], [1.001, -2.003, 0.5004, 3.33]);

  test('a plain implementation is within it, at once its own error', () => {
    expect(expectBfloat16('y', [1, -2, 0.5, 3.328125], exact, exact)).toBeLessThanOrEqual(1);
  });

  test('four times its error is not', () => {
    expect(() => expectBfloat16('y', [1, -2, 0.5, 3.4], exact, exact)).toThrow(
      /error must be at most 2 times/,
    );
  });

  test('neither is NaN, nor a missing element', () => {
    expect(() => expectBfloat16('y', [NaN, -2, 0.5, 3.33], exact, exact)).toThrow(/error/);
    expect(() => expectBfloat16('y', [1], exact, exact)).toThrow(/4 elements/);
  });
});

describe('the benchmark', () => {
  test('rows have names of their own and figures of their unit', () => {
    const rows = gpuRows({ quick: false, whole: false });
    expect(new Set(rows.map(({ name }) => name)).size).toBe(rows.length);
    const product = rows.find(({ request }) => request.kind === 'matmul');
    expect(product && figureOf(product, 1)).toBeCloseTo((2 * 8192 ** 3) / 1e12);
  });

  test('a child answers, fails, dies and is started again', async () => {
    const script = `
      const { createInterface } = require('node:readline');
      createInterface({ input: process.stdin }).on('line', (line) => {
        const { what } = JSON.parse(line);
        if (what === 'die') process.exit(3);
        if (what !== 'hang') console.log(JSON.stringify(what === 'fail' ? { error: 'no' } : { pid: process.pid }));
      });`;
    const child = new JsonChild(process.execPath, ['-e', script]);
    const first = (await child.ask({}, 20)) as { pid: number };
    await expect(child.ask({ what: 'fail' }, 20)).rejects.toThrow('no');
    expect(await child.ask({}, 20)).toEqual(first);
    await expect(child.ask({ what: 'die' }, 20)).rejects.toThrow(/ended/);
    const second = (await child.ask({}, 20)) as { pid: number };
    expect(second.pid).not.toBe(first.pid);
    await expect(child.ask({ what: 'hang' }, 0.2)).rejects.toThrow(/no answer/);
    child.end();
  });
});
