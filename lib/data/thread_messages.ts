// What crosses the threads of a stream: values with their memory, and errors as plain text, since the
// classes of another thread are of another realm.
import type { Transferable } from 'node:worker_threads';
import { SiglipError, type SiglipErrorCode } from '../errors';

/** An error as it crosses threads. */
export interface ThreadError {
  readonly code: string | undefined;
  readonly message: string;
  readonly stack: string | undefined;
}

/** What another thread can be told of whatever was thrown. */
export function threadErrorOf(error: unknown): ThreadError {
  if (!(error instanceof Error)) {
    return { code: undefined, message: String(error), stack: undefined };
  }
  const { code } = error as NodeJS.ErrnoException;
  return { code, message: error.message, stack: error.stack };
}

/** An error of another thread in this library's form. @param who - before its message */
export function errorOfThread(who: string, { code, message, stack }: ThreadError): SiglipError {
  const known = code?.startsWith('ERR_') === true && message !== '';
  const cause = stack === undefined ? undefined : { cause: stack };
  return new SiglipError(
    (known ? code : 'ERR_DATA') as SiglipErrorCode,
    `${who}: ${message}`,
    cause,
  );
}

/** How deep a value is searched for memory: a batch holds lists of images that hold pixels. */
const DEPTH = 3;

/**
 * Buffers to hand over rather than copy: those of typed arrays in the value that cover their buffer
 * whole. Whoever made the value must not keep them.
 */
export function transferable(value: unknown): Transferable[] {
  const buffers = new Set<ArrayBuffer>();
  const visit = (member: unknown, depth: number): void => {
    if (typeof member !== 'object' || member === null) return;
    if (ArrayBuffer.isView(member)) {
      const { buffer, byteLength } = member;
      if (buffer instanceof ArrayBuffer && byteLength === buffer.byteLength) buffers.add(buffer);
    } else if (depth < DEPTH) {
      for (const each of Object.values(member) as readonly unknown[]) visit(each, depth + 1);
    }
  };
  visit(value, 0);
  return [...buffers];
}
