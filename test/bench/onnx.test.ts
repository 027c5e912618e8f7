// The peer's graphs against our own towers. Needs what `npm run bench` installs; skipped without it.
import { spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { peersFolder } from '../../bench/peers';

const installed = existsSync(join(peersFolder, 'node_modules', 'onnxruntime-node'));

(installed ? describe : describe.skip)('exported towers in onnxruntime', () => {
  let differences: Record<string, number> = {};

  beforeAll(() => {
    const root = join(__dirname, '../..');
    const { stdout, stderr } = spawnSync(
      process.execPath,
      ['-r', './test/typescript.js', join(__dirname, 'onnx_child.ts')],
      { cwd: root, encoding: 'utf8' },
    );
    if (stdout === '') throw new Error(stderr);
    differences = JSON.parse(stdout) as Record<string, number>;
  });

  test.each(['vision', 'text', 'naflex', 'naflex-masked'])(
    '%s: every float32 form gives our embeddings, every int8 form comes near',
    (tower) => {
      const of = (kind: string): number[] =>
        Object.entries(differences)
          .filter(([name]) => name.startsWith(`${tower} ${kind}`))
          .map(([, difference]) => difference);
      expect(of('float32')).toHaveLength(3);
      expect(Math.max(...of('float32'))).toBeLessThan(1e-5);
      expect(of('int8')).toHaveLength(4);
      expect(Math.max(...of('int8'))).toBeLessThan(0.1);
      // Not the float32 graph under another name.
      expect(Math.min(...of('int8'))).toBeGreaterThan(1e-5);
    },
  );
});
