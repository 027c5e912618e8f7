// NCCL as far as it goes without a GPU: opened or not, versions, ids, refusals.
import { SiglipError } from '../../lib/errors';
import { addonPath, loadAddon } from '../../lib/native/load';
import { runChild } from './child';

const addon = loadAddon();
const { nccl } = addon.describe().cuda;
const whereNccl = nccl.version === undefined ? test.skip : test;
// Whether the build looks for the library at all.
const looks = nccl.version !== undefined || (nccl.missing ?? '').includes('SIGLIP2_NCCL');
const whereLooked = looks ? test : test.skip;

function refusal(work: () => unknown): SiglipError {
  try {
    work();
  } catch (error) {
    if (error instanceof SiglipError) return error;
    throw error;
  }
  throw new Error('must fail');
}

function lookedFor(path: string): { missing: string; code: string; message: string } {
  const script = `
    const addon = load();
    const { missing } = addon.describe().cuda.nccl;
    try { addon.ncclId() } catch ({ code, message }) {
      console.log(JSON.stringify({ missing, code, message }));
    }`;
  const { output } = runChild(script, { SIGLIP2_NCCL: path });
  return JSON.parse(output) as ReturnType<typeof lookedFor>;
}

test('a version, or what is missing', () => {
  expect(nccl.version ?? '0.0.0').toMatch(/^\d+\.\d+\.\d+$/);
  expect((nccl.version === undefined) === (nccl.missing === undefined)).toBe(false);
});

test('without the library an id is refused with what is missing', () => {
  const { missing, code, message } = lookedFor('/nowhere/libnccl.so.2');
  expect(code).toBe('ERR_COMM');
  expect(message).toBe(`nccl: the library must open, got ${missing}`);
});

whereLooked('a path that is wrong is told', () => {
  expect(lookedFor('/nowhere/libnccl.so.2').missing).toMatch(
    /^\/nowhere\/libnccl\.so\.2: cannot open.*\nto do: set SIGLIP2_NCCL/,
  );
  expect(lookedFor(addonPath()).missing).toMatch(/siglip2\.node has no nccl\w+\nto do/);
});

whereNccl('ids are all different', () => {
  const ids = Array.from({ length: 3 }, () => Buffer.from(addon.ncclId()).toString('hex'));
  expect(ids.every((id) => id.length === 256)).toBe(true);
  expect(new Set(ids).size).toBe(3);
});

whereNccl('arrays of the CPU are not for it', () => {
  const { code, message } = refusal(() => new addon.Nccl('cpu', 1));
  expect(code).toBe('ERR_DEVICE');
  expect(message).toBe('nccl: the device must be a GPU, got cpu');
});

test('a limit that is none', () => {
  const { code, message } = refusal(() => new addon.Nccl('cpu', 0));
  expect(code).toBe('ERR_ARGUMENT');
  expect(message).toBe('nccl: limitSeconds must be positive, got 0');
});
