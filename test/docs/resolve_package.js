'use strict';
// Lets the examples require('siglip2') as a user does: `node -r …/typescript.js -r …/resolve_package.js`.

const Module = require('node:module');
const { resolve } = require('node:path');

const original = Module._resolveFilename;
Module._resolveFilename = function (request, ...rest) {
  const path = request === 'siglip2' ? resolve(__dirname, '../../lib/index.ts') : request;
  return original.call(this, path, ...rest);
};
