import { spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { modelFolder } from '../embed/random_model';

const root = join(__dirname, '..', '..');
const fixed = modelFolder('fixed');
let folder = '';

function convert(...args: readonly string[]): { status: number | null; output: string } {
  const { status, stdout, stderr } = spawnSync(
    process.execPath,
    [
      '-r',
      join(root, 'test', 'typescript.js'),
      join(root, 'lib', 'cli', 'main.ts'),
      'convert',
      ...args,
    ],
    { cwd: root, encoding: 'utf8' },
  );
  return { status, output: stdout + stderr };
}

function json(name: string): unknown {
  return JSON.parse(readFileSync(join(folder, 'out', name), 'utf8'));
}

beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'siglip2-convert-'));
});

afterAll(() => {
  rmSync(folder, { recursive: true, force: true });
});

test('another size, then NaFlex: config, preparation and tokenizer', () => {
  const out = join(folder, 'out');
  const sized = convert(
    fixed(),
    '-o',
    out,
    '--image-size',
    '40',
    '--patch',
    '8',
    '--dtype',
    'bfloat16',
  );
  expect(sized).toEqual({
    status: 0,
    output: expect.stringContaining('patch 8, 40 pixels') as string,
  });
  expect(json('config.json')).toMatchObject({ vision_config: { image_size: 40, patch_size: 8 } });
  expect(json('preprocessor_config.json')).toMatchObject({ size: { height: 40, width: 40 } });
  expect(existsSync(join(out, 'tokenizer.json'))).toBe(true);
  const naflex = convert(fixed(), '-o', out, '--naflex', '--grid', '5', '--positions', 'corner');
  expect(naflex.status).toBe(0);
  expect(json('config.json')).toMatchObject({
    model_type: 'siglip2',
    vision_config: { num_patches: 25 },
  });
  expect(json('preprocessor_config.json')).toMatchObject({ max_num_patches: 256, patch_size: 4 });
});

test('what does not go together is refused', () => {
  const both = convert(fixed(), '-o', join(folder, 'no'), '--naflex', '--image-size', '32');
  expect(both.status).toBe(1);
  expect(both.output).toMatch(/imageSize must be absent in the naflex layout, got 32/);
  expect(existsSync(join(folder, 'no'))).toBe(false);
});
