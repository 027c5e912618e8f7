// What a promise that must fail fails with.
import { SiglipError } from '../lib';

/** The error of work that must fail with one of ours. */
export async function failure(work: Promise<unknown>): Promise<SiglipError> {
  const error: unknown = await work.then(
    () => undefined,
    (reason: unknown) => reason,
  );
  if (error instanceof SiglipError) return error;
  throw new Error(`expected a SiglipError, got ${String(error)}`);
}
