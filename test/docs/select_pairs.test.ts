// The example of selecting pairs, run as a user runs it.
import { spawnSync } from 'node:child_process';
import { join } from 'node:path';

const root = join(__dirname, '..', '..');

test('selects fewer of the pairs that do not fit', () => {
  const { status, stdout, stderr } = spawnSync(
    process.execPath,
    [
      '-r',
      join(root, 'test', 'typescript.js'),
      '-r',
      join(__dirname, 'resolve_package.js'),
      join(root, 'docs', 'examples', 'select_pairs.js'),
    ],
    { cwd: root, encoding: 'utf8' },
  );
  expect(stderr).toBe('');
  expect(status).toBe(0);
  const [, wrong = ''] = /^(\d+) of 64 selected pairs/m.exec(stdout) ?? [];
  expect(Number(wrong)).toBeLessThan(8);
}, 60_000);
