// SPDX-License-Identifier: Apache-2.0
//
// Everything but the tokeniser (hymba/text/tokenizer.hpp), which needs SentencePiece.
#pragma once

#include <hymba/core/macros.hpp>
#include <hymba/exec/policy.hpp>
#include <hymba/fwd.hpp>
#include <hymba/io/emit_variant.hpp>
#include <hymba/io/open.hpp>
#include <hymba/model/batch.hpp>
#include <hymba/model/model.hpp>
#include <hymba/model/session.hpp>
#include <hymba/variant/costs.hpp>
#include <hymba/variant/presets.hpp>
