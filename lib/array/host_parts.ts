import type { DType, HostArray, Spec } from '../native/spec';
import { dtypeOf } from './host_array';

/**
 * Arrays of the host that are one behind the other on a device: what is copied there once need not be
 * copied together before.
 */
export class HostParts<A extends HostArray = HostArray> implements Spec {
  readonly dtype: DType;
  readonly length: number;

  /**
   * @param parts - at least one.
   * @throws ERR_DTYPE unless all are of one class
   */
  constructor(readonly parts: readonly [A, ...A[]]) {
    this.dtype = dtypeOf('HostParts', parts);
    this.length = parts.reduce((sum, part) => sum + part.length, 0);
  }

  get shape(): readonly number[] {
    return [this.length];
  }
}
