// Devices by name.
import { SiglipError } from '../errors';

/** Where arrays live and programs run; `'cuda'` is the first GPU. */
export type Device = 'cpu' | 'cuda' | `cuda:${number}`;

/** The device that a choice comes to, and why. @throws ERR_DEVICE when it is not here */
export function resolveDevice(choice: 'auto' | Device): {
  readonly device: Device;
  readonly reason: string;
} {
  if (choice === 'cpu') return { device: 'cpu', reason: 'asked for' };
  const reason = 'this build has no CUDA kernels';
  if (choice === 'auto') return { device: 'cpu', reason };
  throw new SiglipError(
    'ERR_DEVICE',
    `device: must be 'auto' or 'cpu', got '${choice}': ${reason}`,
  );
}
