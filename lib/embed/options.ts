// What callers pass besides their inputs, checked by value: JavaScript has no types to hold them to.
import type { Device } from '../array';
import { SiglipError } from '../errors';

/** `value`, or `fallback` when it is absent. @throws ERR_ARGUMENT unless an integer ≥ `least` */
export function expectInteger(
  who: string,
  name: string,
  value: number | undefined,
  fallback: number,
  least = 1,
): number {
  if (value === undefined) return fallback;
  if (Number.isSafeInteger(value) && value >= least) return value;
  const expected = least === 1 ? 'a positive integer' : `an integer of at least ${String(least)}`;
  throw new SiglipError('ERR_ARGUMENT', `${who}: ${name} must be ${expected}, got ${shown(value)}`);
}

/** As {@link expectInteger} for a time. @throws ERR_ARGUMENT unless finite and ≥ 0 */
export function expectMilliseconds(
  who: string,
  name: string,
  value: number | undefined,
  fallback: number,
): number {
  if (value === undefined) return fallback;
  // Beyond 2^31 − 1 a timer of Node fires at once.
  if (Number.isFinite(value) && value >= 0 && value < 2 ** 31) return value;
  throw new SiglipError(
    'ERR_ARGUMENT',
    `${who}: ${name} must be milliseconds from 0 to below 2^31, got ${shown(value)}`,
  );
}

/** As {@link expectInteger} for a switch. @throws ERR_ARGUMENT */
export function expectBoolean(
  who: string,
  name: string,
  value: boolean | undefined,
  fallback: boolean,
): boolean {
  if (value === undefined) return fallback;
  if (typeof value === 'boolean') return value;
  throw new SiglipError(
    'ERR_ARGUMENT',
    `${who}: ${name} must be true or false, got ${shown(value)}`,
  );
}

/** As {@link expectInteger} for one of a few words. @throws ERR_ARGUMENT */
export function expectOneOf<T extends string>(
  who: string,
  name: string,
  value: T | undefined,
  allowed: readonly [T, ...T[]],
): T {
  if (value === undefined) return allowed[0];
  if (allowed.includes(value)) return value;
  const words = allowed.map((word) => `'${word}'`).join(' or ');
  throw new SiglipError('ERR_ARGUMENT', `${who}: ${name} must be ${words}, got ${shown(value)}`);
}

/** As {@link expectInteger} for a device; `'auto'` when absent. @throws ERR_ARGUMENT */
export function expectDevice(
  who: string,
  name: string,
  value: 'auto' | Device | undefined,
): 'auto' | Device {
  if (value === undefined) return 'auto';
  if (typeof value === 'string' && /^(?:auto|cpu|cuda(?::\d+)?)$/u.test(value)) return value;
  throw new SiglipError(
    'ERR_ARGUMENT',
    `${who}: ${name} must be 'auto', 'cpu', 'cuda' or 'cuda:<n>', got ${shown(value)}`,
  );
}

/** @throws ERR_ARGUMENT unless absent or an AbortSignal */
export function expectSignal(who: string, signal: AbortSignal | undefined): void {
  if (signal === undefined) return;
  // By form: a signal of another realm, or of a polyfill, is as good.
  const known: unknown = signal;
  const fits =
    typeof known === 'object' &&
    known !== null &&
    'aborted' in known &&
    'addEventListener' in known &&
    typeof known.addEventListener === 'function';
  if (fits) return;
  throw new SiglipError(
    'ERR_ARGUMENT',
    `${who}: signal must be an AbortSignal, got ${shown(signal)}`,
  );
}

/** @throws ERR_ARGUMENT unless a list with something in it */
export function expectEntries(who: string, list: readonly unknown[]): void {
  if (!Array.isArray(list)) {
    throw new SiglipError('ERR_ARGUMENT', `${who}: inputs must be an array, got ${shown(list)}`);
  }
  if (list.length > 0) return;
  throw new SiglipError('ERR_ARGUMENT', `${who}: the list must have at least one entry, got none`);
}

/** A value in a message: short, whatever it is. */
export function shown(value: unknown): string {
  if (typeof value === 'string') return `'${value.slice(0, 80)}'`;
  if (value === null || typeof value !== 'object') return String(value);
  return Array.isArray(value) ? 'an array' : 'an object';
}
