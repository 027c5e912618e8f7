// Small programs for the tests of the runtime.
import type {
  NativeArgument,
  NativeBuffer,
  NativeStep,
  NativeView,
  ProgramDescription,
} from '../../lib/native/addon';
import type { KernelName } from '../../lib/native/kernels';
import { kernelOf, loadAddon } from '../../lib/native/load';

export function view(storage: number, offset: number, ...shape: number[]): NativeView {
  return { storage, offset, dtype: 0, shape };
}

export function step(kernel: KernelName, ...args: NativeArgument[]): NativeStep {
  return { kernel: kernelOf(kernel).index, label: kernel, args };
}

export function description(
  steps: readonly NativeStep[],
  bufferBytes: readonly number[] = [],
  arenaBytes = 0,
): ProgramDescription {
  return { name: 'test', arenaBytes, bufferBytes, steps };
}

/** Sums over 2^20 elements of the arena, back and forth: about a millisecond each. */
export function longSteps(count: number): { steps: NativeStep[]; arenaBytes: number } {
  const elements = 1 << 20;
  const a = view(-1, 0, elements);
  const b = view(-1, 4 * elements, elements);
  const steps = Array.from({ length: count }, (_, i) =>
    i % 2 === 0 ? step('add_forward', b, b, a) : step('add_forward', a, a, b),
  );
  return { steps, arenaBytes: 8 * elements };
}

export function bytesOf(array: Float32Array | Int32Array): Uint8Array {
  return new Uint8Array(array.buffer, array.byteOffset, array.byteLength);
}

export function bufferOf(...values: number[]): NativeBuffer {
  const buffer = new (loadAddon().Buffer)(4 * values.length);
  buffer.write(0, bytesOf(Float32Array.from(values)));
  return buffer;
}

export async function floatsOf(buffer: NativeBuffer): Promise<number[]> {
  const values = new Float32Array(buffer.bytes / 4);
  await buffer.read(0, bytesOf(values));
  return [...values];
}

/** The code of the SiglipError that `action` throws, or a word for what else happened. */
export function codeOf(action: () => unknown): string {
  try {
    action();
  } catch (error) {
    return (error as { code?: string }).code ?? `another error: ${String(error)}`;
  }
  return 'no error';
}

/** As codeOf, for a promise. */
export async function rejectionOf(promise: Promise<unknown>): Promise<string> {
  try {
    await promise;
  } catch (error) {
    return (error as { code?: string }).code ?? `another error: ${String(error)}`;
  }
  return 'no error';
}
