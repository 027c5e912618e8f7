/**
 * What went wrong, in a form a program can act on. The message is for people and may change; the
 * code is part of the interface.
 *
 * | code | meaning |
 * |---|---|
 * | `ERR_SHAPE` | extents do not fit each other or the operation |
 * | `ERR_DTYPE` | a dtype is not the one that is needed |
 * | `ERR_DEVICE` | a device that does not exist here, or operands on different devices |
 * | `ERR_DISPOSED` | something was used after `dispose()` |
 * | `ERR_NOT_DIFFERENTIABLE` | a gradient was asked through an operation that has none |
 * | `ERR_ARGUMENT` | any other argument outside its domain |
 * | `ERR_CONFIG` | a configuration file or object that does not describe a model or a run |
 * | `ERR_WEIGHTS` | a weights file that is damaged or does not fit the model |
 * | `ERR_IMAGE` | bytes that are not a usable image |
 * | `ERR_TOKENIZER` | a tokenizer definition that cannot be used |
 * | `ERR_DATA` | a record that cannot be used, to train, to evaluate or to embed |
 * | `ERR_NOT_FINITE` | a NaN or an infinity where there must not be one |
 * | `ERR_OUT_OF_MEMORY` | the device refuses an allocation, or a plan does not fit into it |
 * | `ERR_CUDA` | the CUDA runtime reports a failure |
 * | `ERR_COMM` | communication between ranks failed |
 * | `ERR_BUSY` | a queue is full and the caller asked not to wait; try again later |
 * | `ERR_ABORTED` | stopped on request: an `AbortSignal`, or the end of the process |
 * | `ERR_FILE` | a file cannot be opened, read or written |
 * | `ERR_NETWORK` | a download failed |
 * | `ERR_BINDING` | the native addon cannot be loaded, or is not the one this version needs |
 */
export type SiglipErrorCode =
  | 'ERR_SHAPE'
  | 'ERR_DTYPE'
  | 'ERR_DEVICE'
  | 'ERR_DISPOSED'
  | 'ERR_NOT_DIFFERENTIABLE'
  | 'ERR_ARGUMENT'
  | 'ERR_CONFIG'
  | 'ERR_WEIGHTS'
  | 'ERR_IMAGE'
  | 'ERR_TOKENIZER'
  | 'ERR_DATA'
  | 'ERR_NOT_FINITE'
  | 'ERR_OUT_OF_MEMORY'
  | 'ERR_CUDA'
  | 'ERR_COMM'
  | 'ERR_BUSY'
  | 'ERR_ABORTED'
  | 'ERR_FILE'
  | 'ERR_NETWORK'
  | 'ERR_BINDING';

/**
 * The one error class of the library; the native side throws it too.
 *
 * The message reads `<who>: <what> must be <expected>, got <actual>`. A failure of the surroundings
 * (no binary, no device, a bad file) adds what was tried and what to do, a line each.
 *
 * @example
 * ```ts
 * try {
 *   await model.embedImages([bytes]);
 * } catch (error) {
 *   if (error instanceof SiglipError && error.code === 'ERR_IMAGE') return badRequest(error.message);
 *   throw error;
 * }
 * ```
 */
export class SiglipError extends Error {
  /** What a program can act on; see {@link SiglipErrorCode}. */
  readonly code: SiglipErrorCode;

  /**
   * @param code - one of {@link SiglipErrorCode}
   * @param message - `<who>: <what> must be <expected>, got <actual>`
   * @param options - `cause`: the error behind this one
   */
  constructor(code: SiglipErrorCode, message: string, options?: ErrorOptions) {
    super(message, options);
    this.name = 'SiglipError';
    this.code = code;
  }
}

/** @throws SiglipError ERR_ABORTED when the signal says so */
export function expectNotAborted(who: string, signal: AbortSignal | undefined): void {
  if (signal?.aborted !== true) return;
  throw new SiglipError('ERR_ABORTED', `${who}: stopped by its signal`, { cause: signal.reason });
}
