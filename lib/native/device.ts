// Devices by name.
import { SiglipError } from '../errors';
import type { NativeCuda } from './addon';
import { loadAddon } from './load';

/** Where arrays live and programs run; `'cuda'` is the first GPU that can be used. */
export type Device = 'cpu' | 'cuda' | `cuda:${number}`;

/** A device by its full name, and why it is this one. */
export interface ResolvedDevice {
  readonly device: Exclude<Device, 'cuda'>;
  /** One line. */
  readonly reason: string;
}

/**
 * The device that a choice comes to. `'auto'` is the first GPU that can be used, else the CPU, and
 * never fails; the reason tells which and why.
 *
 * @throws ERR_DEVICE, with the reason and what to do, when a device that was named is not there;
 * ERR_CUDA when it cannot be opened; ERR_ARGUMENT for another name
 * @example
 * const { device, reason } = resolveDevice('auto'); // 'cuda:0', 'NVIDIA H100, compute capability 9.0'
 */
export function resolveDevice(choice: 'auto' | Device): ResolvedDevice {
  if (choice === 'cpu') return { device: 'cpu', reason: 'asked for' };
  const addon = loadAddon();
  if (choice !== 'auto') return { device: addon.openDevice(choice), reason: 'asked for' };
  const { cuda } = addon.describe();
  const first = cuda.devices.at(0);
  if (first === undefined) return { device: 'cpu', reason: missingIn(cuda) };
  const { index, name, architecture } = first;
  try {
    return {
      device: addon.openDevice(`cuda:${String(index)}` as Device),
      reason: `${name}, compute capability ${(architecture / 10).toFixed(1)}`,
    };
  } catch (error) {
    if (!(error instanceof SiglipError)) throw error;
    return { device: 'cpu', reason: firstLine(error.message) };
  }
}

function missingIn({ missing }: NativeCuda): string {
  return missing.map(firstLine).join('; ');
}

function firstLine(text: string): string {
  return text.split('\n', 1)[0] ?? '';
}
