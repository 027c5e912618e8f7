// `mpirun -n N siglip2 train`: the whole command, on one rank and on two.
import { existsSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { readMetrics } from '../../lib/train';
import { describeMpi, mpirun } from '../comm/mpirun';

let folder = '';

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'siglip2-ranks-'));
});

afterEach(() => {
  rmSync(folder, { recursive: true, force: true });
});

describeMpi('train under mpirun', () => {
  test('two ranks train what one does, and rank 0 alone speaks', async () => {
    const losses: number[][] = [];
    for (const ranks of [1, 2]) {
      const output = join(folder, String(ranks));
      const flags = ['--steps', '4', '--batch', '16', '--device', 'cpu', '--output', output];
      const end = await mpirun(ranks, 'lib/cli/main.ts', ['train', ...flags]);
      expect({ ranks, status: end.status, stdout: end.stdout }).toEqual({
        ...{ ranks, status: 0, stdout: `${join(output, 'model')}\n` },
      });
      expect(existsSync(join(output, 'model', 'model.safetensors'))).toBe(true);
      losses.push(readMetrics(join(output, 'A', 'metrics.jsonl')).map(({ loss }) => loss));
    }
    expect(losses[0]).toHaveLength(4);
    losses[0].forEach((loss, i) => {
      expect(losses[1][i]).toBeCloseTo(loss, 4);
    });
  });

  test('a mistake ends the job with its reason', async () => {
    const flags = ['--steps', '4', '--learning-rate=-1', '--output', join(folder, 'no')];
    const { status, stderr } = await mpirun(2, 'lib/cli/main.ts', ['train', ...flags]);
    expect(status).not.toBe(0);
    expect(stderr).toMatch(
      /siglip2: rank \d of 2: .*learning-rate must be .*got -1.*\(ERR_ARGUMENT\)/,
    );
    expect(existsSync(join(folder, 'no', 'model'))).toBe(false);
    expect(existsSync(join(folder, 'no', 'A', 'metrics.jsonl'))).toBe(false);
  });
});
