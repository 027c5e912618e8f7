// The image of a row as people store it: encoded bytes, a { bytes, path } struct as Hugging Face
// datasets have it, a data URI, base64, or a path below a root.
import { isAbsolute, relative, resolve, sep } from 'node:path';
import { types } from 'node:util';
import type { ImageReference, RowFailure } from './row';
import { unfit } from './failures';

export interface ImageValueOptions {
  /** Folder that paths start from and must stay in. */
  readonly root: string;
  /** How a plain string is read. */
  readonly strings: 'path' | 'base64';
}

/**
 * The image a value stands for.
 *
 * Paths are taken relative to the root and must not leave it: rows are data, and data from elsewhere
 * must not choose which files of this machine are read. Links inside the root are followed.
 */
export function imageOf(
  value: unknown,
  options: ImageValueOptions,
): { readonly image: ImageReference } | { readonly failure: RowFailure } {
  if (types.isUint8Array(value)) return { image: { bytes: value } };
  if (typeof value === 'string') return ofString(value, options);
  if (typeof value === 'object' && value !== null && ('bytes' in value || 'path' in value)) {
    const { bytes, path } = value as { readonly bytes?: unknown; readonly path?: unknown };
    if (types.isUint8Array(bytes)) return { image: { bytes } };
    if (typeof bytes === 'string') return ofBase64(bytes);
    if (typeof path === 'string') return ofString(path, { ...options, strings: 'path' });
  }
  const got = value === undefined || value === null ? 'nothing' : typeof value;
  const expected = 'a path, a data URI, base64, bytes or { bytes, path }';
  return { failure: unfit(`image must be ${expected}, got ${got}`) };
}

function ofString(
  value: string,
  options: ImageValueOptions,
): { readonly image: ImageReference } | { readonly failure: RowFailure } {
  if (value.startsWith('data:')) return ofDataUri(value);
  if (options.strings === 'base64') return ofBase64(value);
  if (/^[a-z][a-z0-9+.-]+:\/\//iu.test(value)) {
    const got = value.slice(0, 80);
    return { failure: unfit(`image must be a path, got the address ${got}: fetch it first`) };
  }
  if (value === '' || value.includes('\0')) {
    return { failure: unfit('image must be a path, got an empty one or one with a zero byte') };
  }
  const path = resolve(options.root, value);
  const inside = relative(resolve(options.root), path);
  if (inside === '..' || inside.startsWith(`..${sep}`) || isAbsolute(inside)) {
    const reason = `image must lie below ${options.root}, got ${value}; --image-root names another folder`;
    return { failure: unfit(reason) };
  }
  return { image: { path } };
}

function ofDataUri(
  value: string,
): { readonly image: ImageReference } | { readonly failure: RowFailure } {
  const comma = value.indexOf(',');
  const head = value.slice(0, comma);
  if (comma < 0 || !head.endsWith(';base64')) {
    const got = value.slice(0, 40);
    return { failure: unfit(`image must be a data URI in base64, got ${got}`) };
  }
  return ofBase64(value.slice(comma + 1));
}

function ofBase64(
  value: string,
): { readonly image: ImageReference } | { readonly failure: RowFailure } {
  const text = value.replace(/\s+/gu, '');
  if (text === '' || !/^[A-Za-z0-9+/_-]*={0,2}$/u.test(text)) {
    const got = `${value.slice(0, 20)}…`;
    return { failure: unfit(`image must be base64, got ${text === '' ? 'nothing' : got}`) };
  }
  return { image: { bytes: Buffer.from(text, 'base64') } };
}
