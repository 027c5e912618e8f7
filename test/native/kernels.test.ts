import { spawnSync } from 'node:child_process';
import { join } from 'node:path';
import { KERNEL_SIGNATURES, kernels } from '../../lib/native/kernels';
import { addonPath, loadAddon } from '../../lib/native/load';
import { float32 } from '../../lib/native/spec';

test('the generated file is that of the addon', () => {
  const root = join(__dirname, '..', '..');
  const { status, stderr } = spawnSync(
    process.execPath,
    [join(root, 'scripts', 'generate_kernels.js'), '--check'],
    { encoding: 'utf8', env: { ...process.env, SIGLIP2_BINDING: addonPath() } },
  );
  expect({ status, stderr }).toEqual({ status: 0, stderr: '' });
});

test('its signatures are those the addon gives of itself', () => {
  const described = Object.fromEntries(
    loadAddon()
      .describe()
      .kernels.map(({ name, arguments: list }) => [name, list]),
  );
  expect(described).toEqual(KERNEL_SIGNATURES);
});

test('a builder puts named arguments into C++ order, without scratch', () => {
  const [images, texts, logitScale, logitBias, loss] = [
    float32(2, 3),
    float32(4, 3),
    float32(1),
    float32(1),
    float32(1),
  ];
  expect(
    kernels.sigmoidLossForward({
      loss,
      dlogitBias: null,
      dlogitScale: null,
      dtexts: null,
      dimages: null,
      batch: 8,
      offset: 4,
      logitBias,
      logitScale,
      texts,
      images,
    }),
  ).toEqual({
    kernel: 'sigmoid_loss_forward',
    arguments: [images, texts, logitScale, logitBias, 4, 8, loss, null, null, null, null],
  });
});
