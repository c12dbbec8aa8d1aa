"""`shoal-broker render`: the configuration and access rules of a production broker, as text.

What a broker is to allow comes from `shoal_contract.access`; nothing here starts or asks a broker,
makes certificates, or touches a file outside the folder it was given.
"""
