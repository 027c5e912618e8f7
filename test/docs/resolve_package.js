'use strict';
// Lets the examples require('siglip2') and its subpaths as a user does, by the package's own exports:
// `node -r …/typescript.js -r …/resolve_package.js`.

const Module = require('node:module');
const { resolve } = require('node:path');
const { exports: subpaths } = require('../../package.json');

const original = Module._resolveFilename;
Module._resolveFilename = function (request, ...rest) {
  const built = subpaths[request.replace(/^siglip2/, '.')]?.default;
  const path =
    built === undefined || !/^siglip2(?:\/|$)/.test(request)
      ? request
      : resolve(__dirname, '../..', built.replace(/^\.\/dist\/(.*)\.js$/, '$1.ts'));
  return original.call(this, path, ...rest);
};
