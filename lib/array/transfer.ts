import type { Device } from '../native/device';
import type { DeviceArray } from './device_array';

/** The array on a device: itself when it is there, else a copy, in which case it is disposed. */
export async function moved<A extends DeviceArray>(array: A, device: Device): Promise<A> {
  if (array.device === device) return array;
  try {
    // Of the same dtype, which the type system cannot follow.
    return (await array.to(device)) as A;
  } finally {
    array.dispose();
  }
}
